"""Laws of the function: it repeats itself, and neither rewriting, refresh nor fold changes it."""

from __future__ import annotations

from torch import nn

from sngd_compile.fold import fold
from sngd_compile.modules.reconstructed import reconstructed_modules
from sngd_compile.verification.report import Check, checked, unfit
from sngd_compile.verification.subject import Subject

NO_SITE = "no weight is reconstructed: print(sngd.explain(model)) has the reasons"


def forward_repeats_itself(subject: Subject) -> Check:
    """Two runs of the plain model agree."""
    again = subject.outputs(subject.plain)
    error = subject.distance(again, subject.first)
    remark = ""
    if not subject.is_finite:
        remark = "the batch has numbers that are not finite: outputs are compared where they are"
    elif not all(bool(output.isfinite().all()) for output in again):
        remark = "the outputs are not all finite, in the plain model either"
    return checked("forward", {"": error}, subject.bound, remark)


def rewriting_keeps_the_function(subject: Subject) -> Check:
    """The network computes what the model does, in train and in eval mode."""
    error = _apart(subject, subject.net, subject.plain)
    return checked("reconstruct", {"": error}, subject.bound)


def refresh_keeps_the_function(subject: Subject) -> Check:
    """A refresh changes no output."""
    if not subject.layers:
        return unfit("refresh", NO_SITE)
    if not subject.renewed:
        return unfit("refresh", "no root was renewed: nothing was observed, or all were refused")
    error = subject.distance(subject.outputs(subject.refreshed), subject.outputs(subject.observed))
    few = len(subject.layers) - len(subject.renewed)
    remark = f"{few} of {len(subject.layers)} roots were not renewed" if few else ""
    return checked("refresh", {"": error}, subject.bound, remark)


def folding_gives_the_model_back(subject: Subject) -> Check:
    """The plain model has the classes and keys that there were, and computes the same."""
    plain = fold(subject.refreshed)
    wrong = _differences(plain, subject.plain)
    if wrong:
        return checked("fold", {"": float("inf")}, subject.bound, f"it has {wrong}")
    return checked("fold", {"": _apart(subject, plain, subject.refreshed)}, subject.bound)


def _apart(subject: Subject, one: nn.Module, other: nn.Module) -> float:
    """Compare two networks in the mode in which they are, and in the other one if that runs."""
    error = subject.distance(subject.outputs(one), subject.outputs(other))
    mode = not other.training
    try:
        expected = subject.outputs(other, mode)
    except Exception:  # as of a BatchNorm that trains on one sample
        return error
    return max(error, subject.distance(subject.outputs(one, mode), expected))


def _differences(plain: nn.Module, expected: nn.Module) -> str:
    """Name what is another class or key than that of the model; "" where nothing is."""
    if reconstructed_modules(plain):
        return "reconstructed modules left"
    # By name: each copy of a `GraphModule` has a class of its own.
    classes = [
        {name: (type(m).__module__, type(m).__qualname__) for name, m in model.named_modules()}
        for model in (plain, expected)
    ]
    for name in classes[0] | classes[1]:
        if classes[0].get(name) != classes[1].get(name):
            return f"another class at {name or 'the top'!r} than the model"
    states = [
        {key: getattr(value, "shape", None) for key, value in model.state_dict().items()}
        for model in (plain, expected)
    ]
    if list(states[0]) != list(states[1]):
        return f"other keys than the model: {sorted(set(states[0]) ^ set(states[1]))[:3]}"
    other = [key for key, shape in states[0].items() if shape != states[1][key]]
    return f"another shape of {other[0]}" if other else ""
