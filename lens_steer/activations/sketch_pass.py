"""Sketching: a pass that counts the values of every unit as they stream by, in one process or several, and resumes.

The pilot texts come first and fix the grid. The others are read in windows of so many texts, and sorted by length
inside a window, so that memory knows one window whatever there is. Processes take turns at the batches, each adds to a
sketch of its own, and the sketches merge to the counts that one process would have.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from lens_steer.activations.activations import Activations
from lens_steer.activations.by_site import BySite
from lens_steer.activations.pooling import TokenPool
from lens_steer.activations.sketch import ActivationSketch, Sketching
from lens_steer.activations.sketch_file import sketch_tensors, sketches_of, write_sketch
from lens_steer.activations.store import Store
from lens_steer.errors import ActivationError, ArtifactError, LensSteerWarning
from lens_steer.host.adapter import host_of
from lens_steer.host.sites import Site
from lens_steer.host.tokens import TokenBatch, Tokens
from lens_steer.host.trunk import Visit, trunk
from lens_steer.processes import is_mine, process_number, wait_for_all
from lens_steer.progress import one_bar
from lens_steer.statistics.sketches import Grid, Sketch
from lens_steer.texts.blocks import Row, split_blocks

WINDOW = 4096
"""Texts that are tokenised, and sorted by length, at a time."""
_SAVE_SECONDS = 20.0
_SAVE_SHARE = 0.1  # of the time, at most, goes into saving
_PILOT = "pilot"


def sketch_texts(
    model: nn.Module,
    rows: Callable[[], Iterable[Row]],
    tokens_of: Callable[[Sequence[Row], Sequence[int]], Tokens],
    texts: Activations,
    settings: Sketching,
    *,
    batch_size: int | None = None,
    saved: Store | None = None,
    progress: bool = True,
) -> ActivationSketch:
    """Run texts through the trunk and sketch every site of `texts`: see `collect`.

    `rows` gives the texts from the first on, each time it is called; `tokens_of` tokenises some, given their numbers.
    ContrastError where too few texts would be held out; ActivationError that names site, unit and text where a value is
    no finite number.
    """
    if saved is not None and saved.finished("sketch.json", lambda: ActivationSketch.load(saved.directory)):
        return ActivationSketch.load(saved.directory)
    run = _Pass(model, rows, tokens_of, texts, settings, saved.batch if saved else batch_size, saved)
    with one_bar(len(texts.labels), desc="sketch", unit="text", show=progress) as bar:
        part = run.rest(run.pilot(bar), bar)
    if saved is None:
        return run.result(part)
    wait_for_all("all batches were counted")
    if process_number() == 0:
        whole, _ = run.read(_PILOT)
        for name in _parts(saved):
            one, _ = run.read(name)
            whole = {site: sketch.merged(one.pop(site)) for site, sketch in whole.items()}
        write_sketch(run.result(whole), saved.directory)
    wait_for_all("the sketch was written")
    if process_number() == 0:
        saved.remove([_PILOT, *_parts(saved)])
    return ActivationSketch.load(saved.directory)


def sketch_plan(settings: Sketching) -> dict[str, Any]:
    """Return the settings of a sketch as a store knows them; a grid by its hash."""
    plan = {**asdict(replace(settings, grid=None)), "window": WINDOW}
    if settings.grid is not None:
        digest = hashlib.sha256()
        for site in settings.grid.sites:
            digest.update(settings.grid.sketches[site].grid.cuts.cpu().numpy().tobytes())
        plan["grid"] = digest.hexdigest()
    return plan


class _Pass:
    """What the steps of one pass share."""

    def __init__(
        self,
        model: nn.Module,
        rows: Callable[[], Iterable[Row]],
        tokens_of: Callable[[Sequence[Row], Sequence[int]], Tokens],
        texts: Activations,
        settings: Sketching,
        batch_size: int | None,
        saved: Store | None,
    ) -> None:
        self._model, self._rows, self._tokens_of, self._texts = model, rows, tokens_of, texts
        self._settings, self._batch_size, self._saved = settings, batch_size, saved
        self._sites, self._device = tuple(texts.values), host_of(model).device
        # Metal has no float64: there the sketch stays on the CPU.
        self._place = torch.device("cpu") if self._device.type == "mps" else self._device
        self._members = _members(texts, settings.holdout, settings.seed)
        order = np.random.default_rng(settings.seed).permutation(len(texts.labels))
        self._piloted = set() if settings.grid is not None else set(order[: settings.pilot].tolist())

    def result(self, sketches: dict[str, Sketch]) -> ActivationSketch:
        by_site = BySite(self._sites, lambda site: sketches[site.name])
        return ActivationSketch(by_site, self._texts, self._settings.holdout, self._settings.seed)

    def read(self, name: str) -> tuple[dict[str, Sketch], set[int]]:
        """Return stored sketches and which batches they count."""
        assert self._saved is not None
        tensors = self._saved.read(name)
        if "batches" not in tensors:
            raise ArtifactError(f"{self._saved.path(name)} does not say what it counts: remove it")
        sketches = sketches_of(tensors, self._sites, str(self._saved.path(name)), self._place)
        return sketches, set(tensors["batches"].tolist())

    def pilot(self, bar: Any) -> dict[str, Sketch]:
        """Return the sketch of the pilot texts, whose grid all others share; with a store, the first process makes it.

        It also takes damaged files away, before anybody writes one.
        """
        if self._saved is None:
            return self._run_pilot(bar)
        if process_number() == 0:
            for name in _parts(self._saved):
                self._saved.whole(name)
            if not self._saved.whole(_PILOT):
                self._saved.remove(_parts(self._saved))  # of a grid that is lost
                self._write(_PILOT, self._run_pilot(bar), set())
        wait_for_all("the pilot texts were sketched")
        return self.read(_PILOT)[0]

    def _run_pilot(self, bar: Any) -> dict[str, Sketch]:
        grid = self._settings.grid
        if grid is not None:
            groups = len(self._members)
            return {site.name: Sketch(_on(grid.sketches[site].grid, self._place), groups) for site in self._sites}
        values: dict[str, list[Tensor]] = {site.name: [] for site in self._sites}
        numbers: list[int] = []

        def visit_of(site: Site) -> Visit:
            return lambda activation, batch: values[site.name].append(self._pooled(activation, batch))

        with torch.no_grad(), trunk(self._model, {site: visit_of(site) for site in self._sites}) as run:
            for _, batch in self._batches(self._piloted):
                run(batch.to(self._device))
                numbers += batch.rows
                bar.update(len(batch.rows))
        sketches = {}
        for site in self._sites:
            pooled = torch.cat(values.pop(site.name))
            sketches[site.name] = Sketch(Grid.of(pooled, self._settings.bins), len(self._members))
            self._add(sketches[site.name], site, pooled, numbers)
        return sketches

    def rest(self, pilot: dict[str, Sketch], bar: Any) -> dict[str, Sketch]:
        """Count this process's batches, anew or from where they were saved; without a store into the pilot's sketch."""
        sketches, mine, others, name = pilot, set[int](), set[int](), _part(process_number())
        if self._saved is not None:
            sketches = {site: Sketch(one.grid, one.groups) for site, one in pilot.items()}
            del pilot
            for part in _parts(self._saved):
                counted, batches = self.read(part)
                if part == name:
                    sketches, mine = counted, batches
                else:
                    others |= batches
            wait_for_all("all had read what was counted before")
        last, patience = time.monotonic(), _SAVE_SECONDS

        def visit_of(site: Site) -> Visit:
            def visit(activation: Tensor, batch: TokenBatch) -> None:
                self._add(sketches[site.name], site, self._pooled(activation, batch), list(batch.rows))

            return visit

        with torch.no_grad(), trunk(self._model, {site: visit_of(site) for site in self._sites}) as run:
            for number, batch in self._batches(None):
                here = is_mine(number) or self._saved is None
                if here and number not in mine and number not in others:
                    run(batch.to(self._device))
                    mine.add(number)
                bar.update(len(batch.rows))
                if self._saved is not None and time.monotonic() - last >= patience:
                    last = time.monotonic()
                    self._write(name, sketches, mine)
                    patience = max(_SAVE_SECONDS, (time.monotonic() - last) / _SAVE_SHARE)
                    last = time.monotonic()
        if self._saved is not None and mine:
            self._write(name, sketches, mine)
        return sketches

    def _write(self, name: str, sketches: dict[str, Sketch], batches: set[int]) -> None:
        assert self._saved is not None
        counted = torch.tensor(sorted(batches), dtype=torch.int64)
        self._saved.write(name, {**sketch_tensors(sketches), "batches": counted})

    def _batches(self, chosen: set[int] | None) -> Iterator[tuple[int, TokenBatch]]:
        """Yield numbered batches of some texts, all in one window; or of all but the pilot's, window by window."""
        if chosen is not None:
            picked = [(number, row) for number, row in enumerate(self._rows()) if number in chosen]
            windows: Iterable[tuple[list[int], list[Row]]] = [tuple(map(list, zip(*picked)))] if picked else []  # type: ignore[list-item]
        else:
            windows = _windows(self._rows())
        warned = False
        batch_number = 0
        for numbers, rows in windows:
            with warnings.catch_warnings():
                if warned:  # of texts that were cut, once and not for every window
                    warnings.simplefilter("ignore", LensSteerWarning)
                tokens = self._tokens_of(rows, numbers)
            warned = True
            left = None if chosen is not None else [k for k, row in enumerate(numbers) if row not in self._piloted]
            for places, batch in tokens.batches(self._batch_size, rows=left):
                yield batch_number, replace(batch, rows=tuple(numbers[place] for place in places))
                batch_number += 1

    def _pooled(self, activation: Tensor, batch: TokenBatch) -> Tensor:
        return TokenPool(batch.pooled.to(activation.device))(activation, self._texts.pool).to(self._place)

    def _add(self, sketch: Sketch, site: Site, values: Tensor, rows: list[int]) -> None:
        try:
            sketch.add(values, self._members[:, rows])
        except ActivationError as error:
            row, unit = (~torch.isfinite(values)).nonzero()[0].tolist()
            raise ActivationError(
                f"{site.name}[{unit}] is {float(values[row, unit])} for text {rows[row]}: the model or an edit "
                "attached to it overflows"
            ) from error


def _windows(rows: Iterable[Row]) -> Iterator[tuple[list[int], list[Row]]]:
    iterator, first = iter(rows), 0
    while window := list(islice(iterator, WINDOW)):
        yield list(range(first, first + len(window))), window
        first += len(window)


def _part(process: int) -> str:
    return f"part-{process:05d}"


def _parts(saved: Store) -> list[str]:
    return sorted(path.stem for path in saved.directory.glob("part-*.safetensors"))


def _on(grid: Grid, place: torch.device) -> Grid:
    return Grid(grid.cuts.to(place))


def _members(texts: Activations, holdout: float | None, seed: int) -> Bool[Tensor, "group text"]:
    """Return, concept by concept, which source texts select, which are held out, and the same of the target."""
    groups = []
    hashes = None if texts.hashes is None else texts.hashes[:, 0].numpy()
    for label in texts.labels.numpy().T:
        held = np.zeros(len(label), dtype=np.bool_)
        if holdout is not None:
            held = split_blocks(texts.blocks.numpy(), label, holdout, seed, hashes=hashes, fewest=2)
        groups += [(label == side) & (held == half) for side in (1, 0) for half in (False, True)]
    return torch.from_numpy(np.stack(groups))
