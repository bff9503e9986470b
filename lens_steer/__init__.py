"""Find the expert units of a language model, steer it by editing few of them, and see what the edit does downstream.

The public names are loaded when they are first used: importing lens_steer costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lens_steer.activations.activations import Activations as Activations
    from lens_steer.activations.collect import collect as collect
    from lens_steer.activations.show import show_units as show_units
    from lens_steer.cli.study import study_command as study_command
    from lens_steer.contrast import ContrastSet as ContrastSet
    from lens_steer.contrast import LabelledTexts as LabelledTexts
    from lens_steer.effects.downstream import downstream_shift as downstream_shift
    from lens_steer.effects.interaction import Interaction as Interaction
    from lens_steer.effects.interaction import interaction as interaction
    from lens_steer.errors import LensSteerError as LensSteerError
    from lens_steer.errors import LensSteerWarning as LensSteerWarning
    from lens_steer.evaluation.evaluation import Evaluation as Evaluation
    from lens_steer.evaluation.evaluation import evaluate as evaluate
    from lens_steer.evaluation.generation import generate as generate
    from lens_steer.evaluation.intervals import change_interval as change_interval
    from lens_steer.evaluation.intervals import perplexity_change as perplexity_change
    from lens_steer.evaluation.intervals import share_change as share_change
    from lens_steer.evaluation.oracle_scorer import OracleScorer as OracleScorer
    from lens_steer.evaluation.perplexity import perplexity as perplexity
    from lens_steer.evaluation.reading import read_continuations as read_continuations
    from lens_steer.evaluation.scorers import ConceptClassifier as ConceptClassifier
    from lens_steer.evaluation.scorers import Scorer as Scorer
    from lens_steer.evaluation.scorers import WordList as WordList
    from lens_steer.evaluation.steering_error import SteeringErrors as SteeringErrors
    from lens_steer.evaluation.steering_error import steering_error as steering_error
    from lens_steer.host.load import load_model as load_model
    from lens_steer.host.scope import Scope as Scope
    from lens_steer.host.sites import Site as Site
    from lens_steer.host.sites import find_sites as find_sites
    from lens_steer.host.units import Unit as Unit
    from lens_steer.interventions.ablation import ablate as ablate
    from lens_steer.interventions.ablation import random_units as random_units
    from lens_steer.interventions.bake import bake as bake
    from lens_steer.interventions.compose import Collisions as Collisions
    from lens_steer.interventions.compose import collisions as collisions
    from lens_steer.interventions.compose import compose as compose
    from lens_steer.interventions.gated_map import Gated as Gated
    from lens_steer.interventions.gated_map import LogisticGate as LogisticGate
    from lens_steer.interventions.intervention import Edit as Edit
    from lens_steer.interventions.intervention import Intervention as Intervention
    from lens_steer.interventions.low_rank import LowRankAffine as LowRankAffine
    from lens_steer.interventions.maps import DiagonalAffine as DiagonalAffine
    from lens_steer.interventions.project_out import ProjectOut as ProjectOut
    from lens_steer.interventions.row_gate import RowGate as RowGate
    from lens_steer.methods.act_add import ActAdd as ActAdd
    from lens_steer.methods.activation_transport import GaussianAcT as GaussianAcT
    from lens_steer.methods.activation_transport import LinearAcT as LinearAcT
    from lens_steer.methods.activation_transport import MeanAcT as MeanAcT
    from lens_steer.methods.aura import AurA as AurA
    from lens_steer.methods.caa import CAA as CAA
    from lens_steer.methods.cast import CAST as CAST
    from lens_steer.methods.damp import Damp as Damp
    from lens_steer.methods.damp import Det0 as Det0
    from lens_steer.methods.dsas import DSAS as DSAS
    from lens_steer.methods.iti import ITI as ITI
    from lens_steer.methods.lineas import LinEAS as LinEAS
    from lens_steer.methods.loreft import LoReFT as LoReFT
    from lens_steer.methods.repe import RepE as RepE
    from lens_steer.methods.self_conditioning import SelfCond as SelfCond
    from lens_steer.ranking.experts import ExpertRanking as ExpertRanking
    from lens_steer.ranking.experts import rank_experts as rank_experts
    from lens_steer.ranking.probe import probe_sites as probe_sites
    from lens_steer.reading import read_contrast as read_contrast
    from lens_steer.report import figures as figures
    from lens_steer.report.page import write_report as write_report
    from lens_steer.report.plots import plot as plot
    from lens_steer.report.study import Study as Study
    from lens_steer.report.token_view import TokenView as TokenView

_HOMES = {
    "ActAdd": "methods.act_add",
    "Activations": "activations.activations",
    "AurA": "methods.aura",
    "CAA": "methods.caa",
    "CAST": "methods.cast",
    "Collisions": "interventions.compose",
    "ConceptClassifier": "evaluation.scorers",
    "ContrastSet": "contrast",
    "DSAS": "methods.dsas",
    "Damp": "methods.damp",
    "Det0": "methods.damp",
    "DiagonalAffine": "interventions.maps",
    "Edit": "interventions.intervention",
    "Evaluation": "evaluation.evaluation",
    "ExpertRanking": "ranking.experts",
    "Gated": "interventions.gated_map",
    "GaussianAcT": "methods.activation_transport",
    "ITI": "methods.iti",
    "Interaction": "effects.interaction",
    "Intervention": "interventions.intervention",
    "LabelledTexts": "contrast",
    "LensSteerError": "errors",
    "LensSteerWarning": "errors",
    "LinEAS": "methods.lineas",
    "LinearAcT": "methods.activation_transport",
    "LoReFT": "methods.loreft",
    "LogisticGate": "interventions.gated_map",
    "LowRankAffine": "interventions.low_rank",
    "MeanAcT": "methods.activation_transport",
    "OracleScorer": "evaluation.oracle_scorer",
    "ProjectOut": "interventions.project_out",
    "RepE": "methods.repe",
    "RowGate": "interventions.row_gate",
    "Scope": "host.scope",
    "Scorer": "evaluation.scorers",
    "SelfCond": "methods.self_conditioning",
    "Site": "host.sites",
    "SteeringErrors": "evaluation.steering_error",
    "Study": "report.study",
    "TokenView": "report.token_view",
    "Unit": "host.units",
    "WordList": "evaluation.scorers",
    "ablate": "interventions.ablation",
    "bake": "interventions.bake",
    "change_interval": "evaluation.intervals",
    "collect": "activations.collect",
    "collisions": "interventions.compose",
    "compose": "interventions.compose",
    "downstream_shift": "effects.downstream",
    "evaluate": "evaluation.evaluation",
    "figures": "report",
    "find_sites": "host.sites",
    "generate": "evaluation.generation",
    "interaction": "effects.interaction",
    "load_model": "host.load",
    "perplexity": "evaluation.perplexity",
    "perplexity_change": "evaluation.intervals",
    "plot": "report.plots",
    "probe_sites": "ranking.probe",
    "random_units": "interventions.ablation",
    "rank_experts": "ranking.experts",
    "read_continuations": "evaluation.reading",
    "read_contrast": "reading",
    "share_change": "evaluation.intervals",
    "show_units": "activations.show",
    "steering_error": "evaluation.steering_error",
    "study_command": "cli.study",
    "write_report": "report.page",
}

__all__ = sorted(_HOMES)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lens_steer' has no attribute {name!r}")
    value = getattr(import_module(f"lens_steer.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
