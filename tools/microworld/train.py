"""Train a small GPT-2 on the microworld, from the grammar alone: `python -m tools.microworld.train --out DIR`.

Every batch is fresh; a text begins with `<bos>` at position 0 and ends with `<eos>`. The loss of a word is its
cross-entropy against the law it was drawn from (laws.py): its mean is that of the usual loss. An interrupted training
is taken up again with `--resume` and ends with the same weights (on the CPU bit for bit, at an equal thread count).
Needs torch, transformers, tokenizers, safetensors, numpy and tqdm, no network.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from lens_steer.errors import MicroworldError, OutputError
from lens_steer.microworld.checkpoint import remove_norms
from lens_steer.microworld.english import english
from lens_steer.microworld.grammar import BOS, EOS, PAD
from lens_steer.microworld.tokenizer import POSITIONS, save_tokenizer
from tools.microworld.training_data import stream_batches

if TYPE_CHECKING:
    from collections.abc import Sequence

Size = Literal["tiny", "small", "medium", "large"]
SHAPES: dict[str, tuple[int, int, int]] = {
    "tiny": (32, 2, 2),
    "small": (96, 4, 4),
    "medium": (144, 6, 6),
    "large": (256, 8, 8),
}
STATE = "training.safetensors"


@dataclass(frozen=True, kw_only=True)
class Training:
    """What decides the weights: a size by name (`SHAPES`), steps, batch in tokens, learning rate and seed."""

    size: Size = "medium"
    norm: bool = True
    steps: int = 11_000
    batch_tokens: int = 4096
    learning_rate: float = 5e-3
    warmup: int = 200
    weight_decay: float = 0.01
    seed: int = 0

    def rate(self, step: int) -> float:
        """The learning rate of a step: linear warm-up, then a cosine to 2 % of the peak."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        share = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def new_model(training: Training) -> Any:
    """A GPT2LMHeadModel with fresh weights from the seed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    width, layers, heads = SHAPES[training.size]
    ids = english().ids
    config = GPT2Config(
        vocab_size=len(ids), n_positions=POSITIONS, n_embd=width, n_layer=layers, n_head=heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=ids[BOS], eos_token_id=ids[EOS],
    )  # fmt: skip
    config.microworld_norm = training.norm
    # GPT-2's gelu_new, in one pass over memory instead of eight.
    config.activation_function = "gelu_pytorch_tanh"
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        model: Any = GPT2LMHeadModel._from_config(config, attn_implementation="eager")  # type: ignore[no-untyped-call]
    if not training.norm:
        remove_norms(model)
    return model


def train(
    training: Training,
    out: Path | str,
    *,
    device: str = "cpu",
    resume: bool = False,
    workers: int = 0,
    save_every: int = 500,
    stop_after: int | None = None,
) -> Path | None:
    """Train and write the checkpoint into `out`; returns the folder, None when stopped early (`stop_after` steps).

    Refused: a folder that holds other files; a half-trained one without `resume`, or begun with other settings.
    """
    folder = _prepare(Path(out), resume)
    model = new_model(training).to(device).train()
    optimizers = _optimizers(model, training)
    first = _restore(folder / STATE, training, model, optimizers) if resume else 0
    last = training.steps if stop_after is None else min(training.steps, stop_after)
    batches = stream_batches(training.seed, training.batch_tokens, skip=first, workers=workers)
    precision = torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
    with tqdm(total=training.steps, initial=first, desc="training", mininterval=2.0) as bar:
        for step in range(first, last):
            batch = next(batches)
            ids = torch.from_numpy(batch.ids).to(device, non_blocking=True).long()
            words = torch.from_numpy(batch.words).to(device, non_blocking=True)
            laws = torch.from_numpy(batch.targets()).to(device, non_blocking=True)
            with precision:
                logits = model(ids[:, :-1], use_cache=False).logits
            loss = F.cross_entropy(logits[words].float(), laws)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = training.rate(step)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            bar.update()
            if step % 50 == 49:
                bar.set_postfix(nats=f"{loss.item():.4f}")
            if (step + 1) % save_every == 0 or step + 1 == last:
                _store(folder / STATE, training, model, optimizers, step + 1)
    batches.close()
    if last < training.steps:
        return None
    _finish(folder, training, model)
    return folder


def _optimizers(model: Any, training: Training) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, gains and biases."""
    matrices = [weight for weight in model.transformer.h.parameters() if weight.ndim == 2]
    own = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in own]
    return (
        torch.optim.Muon(matrices, weight_decay=training.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0),
    )


def _prepare(folder: Path, resume: bool) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    others = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    if STATE in others and not resume:
        raise OutputError(f"{folder} holds an unfinished training; add --resume, or choose another folder.")
    if others and STATE not in others:
        raise OutputError(f"{folder} already holds {', '.join(others[:3])}; choose an empty folder.")
    if resume and not others:
        raise OutputError(f"There is no training to resume in {folder} ({STATE} is missing).")
    return folder


def _store(
    path: Path, training: Training, model: Any, optimizers: tuple[torch.optim.Optimizer, ...], step: int
) -> None:
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"weight/{name}"] = parameter.detach().cpu().contiguous()
        for optimizer in optimizers:
            for part, value in optimizer.state.get(parameter, {}).items():
                if part != "step":
                    tensors[f"{part}/{name}"] = value.cpu().contiguous()
    beside = path.with_name(f".{path.name}.part")
    save_file(tensors, beside, metadata={"training": json.dumps(asdict(training)), "step": str(step)})
    os.replace(beside, path)


def _restore(path: Path, training: Training, model: Any, optimizers: tuple[torch.optim.Optimizer, ...]) -> int:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata()
            step = int(metadata["step"])
            if json.loads(metadata["training"]) != asdict(training):
                raise MicroworldError(
                    f"{path} was begun with other settings: {metadata['training']}. Resume with those."
                )
            with torch.no_grad():
                names = {id(parameter): name for name, parameter in model.named_parameters()}
                for name, parameter in model.named_parameters():
                    parameter.copy_(file.get_tensor(f"weight/{name}"))
                for optimizer, parts in zip(optimizers, (("momentum_buffer",), ("exp_avg", "exp_avg_sq"))):
                    for parameter in optimizer.param_groups[0]["params"]:
                        state = {part: file.get_tensor(f"{part}/{names[id(parameter)]}") for part in parts}
                        optimizer.state[parameter] = {key: value.to(parameter) for key, value in state.items()}
                        if "exp_avg" in state:
                            optimizer.state[parameter]["step"] = torch.tensor(float(step))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise MicroworldError(
            f"The unfinished training {path} is damaged ({error}); start anew in an empty folder."
        ) from error
    return step


def _finish(folder: Path, training: Training, model: Any) -> None:
    model.config.pad_token_id = model.generation_config.pad_token_id = english().ids[PAD]
    model.config.activation_function = "gelu_new"
    model.cpu().eval().save_pretrained(folder)
    save_tokenizer(folder)
    (folder / "training.json").write_text(json.dumps(asdict(training), indent=2) + "\n", "utf-8")
    (folder / STATE).unlink()


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and train."""
    defaults = Training()
    parser = argparse.ArgumentParser(prog="python -m tools.microworld.train", description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=Path, help="an empty folder, or one to resume")
    parser.add_argument("--size", choices=[*SHAPES], default=defaults.size)
    parser.add_argument("--no-norm", action="store_true", help="a sibling without layer norms")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--batch-tokens", type=int, default=defaults.batch_tokens)
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--workers", type=int, default=None, help="sampling processes (default: 0 on the CPU, else up to 8)"
    )
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--resume", action="store_true")
    chosen = parser.parse_args(arguments)
    workers = chosen.workers
    if workers is None:
        workers = min(8, max(1, (os.cpu_count() or 2) - 1)) if chosen.device != "cpu" else 0
    training = Training(
        size=chosen.size,
        norm=not chosen.no_norm,
        steps=chosen.steps,
        batch_tokens=chosen.batch_tokens,
        learning_rate=chosen.learning_rate,
        seed=chosen.seed,
    )
    train(
        training,
        chosen.out,
        device=chosen.device,
        resume=chosen.resume,
        workers=workers,
        save_every=chosen.save_every,
    )


if __name__ == "__main__":
    main()
