"""Bugs in what trainers and libraries around a network meet."""

import importlib

from bug import caught_by, wrap
from sngd_compile.integrations import trained_network
from sngd_compile.modules import portable_state
from sngd_compile.training import coordinates

observe = importlib.import_module("sngd_compile.fisher.observe")
RECOMPUTED = "tests/training/test_recomputed.py"


@caught_by((RECOMPUTED, "-k", "shared and again"))
def repeated_forwards_counted_again() -> None:
    """What checkpointing repeats is counted a second time."""
    observe.repeats_a_forward = lambda: False


@caught_by((RECOMPUTED, "-k", "observed_once and True"))
def reentrant_forwards_never_counted() -> None:
    """Each forward inside of a backward pass is taken for a repetition."""
    observe.repeats_a_forward = lambda: True


@caught_by(("tests/integrations/test_peft.py", "-k", "given and shared"))
def adapters_given_as_w_prime() -> None:
    """Only what saves is taken for who asks for the weights of adapters."""
    portable_state.ASKING = frozenset({"save_pretrained"})


@caught_by(("tests/training/test_hooks.py", "-k", "share_moves_once"))
def shared_momentum_moves_twice() -> None:
    """Each optimizer that holds a momentum moves it."""
    coordinates._memory = lambda tensor: object()


@caught_by(("tests/modules/test_checkpoint.py", "-k", "of_its_attributes"))
def states_of_attributes_stay() -> None:
    """What a class has written of its attributes into its state is taken for `w'`."""
    portable_state._keys_of = lambda site, prefix: []


@caught_by(("tests/integrations/test_lightning.py", "-k", "metrics_are_logged and False"))
def every_layer_logged() -> None:
    """The metrics of each layer are logged unasked."""
    # Not in the callback: pytest does not start where Lightning, which it has plugins for, is.
    wrap(trained_network, "logged_metrics", lambda original, net, layers: original(net, True))
