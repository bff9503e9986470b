"""Every error and warning that lens_steer raises: one tree, each naming the culprit and the remedy.

The command line ends with an exit status by class: see `lens_steer.cli.exit_status`.
"""

from __future__ import annotations


class LensSteerError(Exception):
    """Base of every error that lens_steer raises on purpose."""


class ModelError(LensSteerError):
    """The model cannot be used as it is: not a TransformerLens model, in training mode, wrapped twice."""


class SiteError(LensSteerError):
    """A hook point is unknown, has another width, never fires, or a write there does not reach the model."""


class UnitError(LensSteerError):
    """A unit, or a table of units, cannot be read or does not exist."""


class ContrastError(LensSteerError):
    """Texts or labels do not make a contrast: an empty side, blank rows, an undecided source label."""


class TokenError(LensSteerError):
    """Texts cannot be turned into tokens for this model: too long, empty, or without a chat template."""


class ActivationError(LensSteerError):
    """Activations are missing, not finite, or do not belong together."""


class MapError(LensSteerError):
    """An activation map or a composition of maps is impossible: no inverse, other width, other scope."""


class SettingError(LensSteerError):
    """A setting of a method or a call is out of range or contradicts another one."""


class ArtifactError(LensSteerError):
    """A saved artifact is damaged, foreign, of another version, or fitted on another model."""


class OutputError(LensSteerError):
    """An output place already holds something else, or cannot be written."""


class SetupError(LensSteerError):
    """The installation or machine cannot do the work: `lens-steer doctor` says what is at fault."""


class ProcessError(LensSteerError):
    """One of several processes that work on a run has ended, or does not answer."""


class MicroworldError(LensSteerError):
    """A word, attribute or contrast is not part of the embedded language, or its checkpoint is damaged."""


class LensSteerWarning(UserWarning):
    """Base of every warning: something was done that the caller may not have meant."""
