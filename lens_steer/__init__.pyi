"""The public names, once: where each lives. `__init__.py` loads them from here when they are first used."""

from .activations.activations import Activations
from .activations.collect import collect
from .activations.show import show_units
from .cli.study import study_command
from .effects.downstream import downstream_shift
from .effects.interaction import Interaction, interaction
from .errors import LensSteerError, LensSteerWarning
from .evaluation.evaluation import Evaluation, evaluate
from .evaluation.generation import generate
from .evaluation.oracle_scorer import OracleScorer
from .evaluation.perplexity import perplexity
from .evaluation.reading import read_continuations
from .evaluation.scorers import ConceptClassifier, Scorer, WordList
from .evaluation.steering_error import SteeringErrors, steering_error
from .host.load import load_model
from .host.scope import Scope
from .host.sites import Site, find_sites
from .host.units import Unit
from .interventions.ablation import ablate, random_units
from .interventions.bake import bake
from .interventions.collisions import Collisions, collisions
from .interventions.compose import compose
from .interventions.edit import Edit
from .interventions.gated_map import Gated, LogisticGate
from .interventions.intervention import Intervention
from .interventions.low_rank import LowRankAffine
from .interventions.maps import DiagonalAffine
from .interventions.matched_units import matched_units
from .interventions.project_out import ProjectOut
from .interventions.row_gate import RowGate
from .methods.act_add import ActAdd
from .methods.activation_transport import GaussianAcT, LinearAcT, MeanAcT
from .methods.aura import AurA
from .methods.caa import CAA
from .methods.cast import CAST
from .methods.damp import Damp, Det0
from .methods.dsas import DSAS
from .methods.iti import ITI
from .methods.lineas import LinEAS
from .methods.loreft import LoReFT
from .methods.repe import RepE
from .methods.self_conditioning import SelfCond
from .progress import on_interrupt
from .ranking.experts import ExpertRanking, rank_experts
from .ranking.probe import probe_sites
from .report import figures
from .report.page import write_report
from .report.plots import plot
from .report.study import Study
from .report.token_view import TokenView
from .statistics.intervals import change_interval, perplexity_change, share_change
from .texts.contrast import ContrastSet, LabelledTexts
from .texts.readers import read_contrast

__version__: str
__all__ = [
    "CAA",
    "CAST",
    "DSAS",
    "ITI",
    "ActAdd",
    "Activations",
    "AurA",
    "Collisions",
    "ConceptClassifier",
    "ContrastSet",
    "Damp",
    "Det0",
    "DiagonalAffine",
    "Edit",
    "Evaluation",
    "ExpertRanking",
    "Gated",
    "GaussianAcT",
    "Interaction",
    "Intervention",
    "LabelledTexts",
    "LensSteerError",
    "LensSteerWarning",
    "LinEAS",
    "LinearAcT",
    "LoReFT",
    "LogisticGate",
    "LowRankAffine",
    "MeanAcT",
    "OracleScorer",
    "ProjectOut",
    "RepE",
    "RowGate",
    "Scope",
    "Scorer",
    "SelfCond",
    "Site",
    "SteeringErrors",
    "Study",
    "TokenView",
    "Unit",
    "WordList",
    "ablate",
    "bake",
    "change_interval",
    "collect",
    "collisions",
    "compose",
    "downstream_shift",
    "evaluate",
    "figures",
    "find_sites",
    "generate",
    "interaction",
    "load_model",
    "matched_units",
    "on_interrupt",
    "perplexity",
    "perplexity_change",
    "plot",
    "probe_sites",
    "random_units",
    "rank_experts",
    "read_continuations",
    "read_contrast",
    "share_change",
    "show_units",
    "steering_error",
    "study_command",
    "write_report",
]
