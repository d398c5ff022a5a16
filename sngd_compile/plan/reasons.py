"""Why a parameter is left as it is, in words that several parts of the plan use."""

from __future__ import annotations

PLAIN = "it trains by plain gradient descent"
LEFT_OUT = "left out by an override"
ADDED_LATER = (
    f"{LEFT_OUT}, or added after reconstruct: {PLAIN}; to change that, fold the network and "
    "reconstruct it again"
)
AT_RUN_TIME = "its forward runs as written, and its weights are observed at run time"

LONE_BIAS = (
    "a bias that joins no local Fisher: its own is the identity, so plain descent on it is natural"
)
UNUSED = "its module's forward does not use it"
UNMET = "no use of it was found, as far as its module's forward could be followed"
ADDED = "added to activations: its local Fisher is the identity, so plain descent on it is natural"
TOKEN = (
    "it stands among activations as it is: its local Fisher is a multiple of the identity, so "
    "plain descent on it is natural"
)
