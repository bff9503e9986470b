"""A HookedTransformer beside the bridge, with transformer-lens 3.9."""

from tests.compat import hooked_tiny as hooked_tiny
