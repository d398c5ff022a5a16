"""Bugs in what is one process's own and what is joint, and in what a capture depends on."""

from typing import Any

from bug import caught_by, wrap
from sngd_compile.fisher.kinds.base import FisherKind
from sngd_compile.fisher.layer import ROWS, FisherLayer
from sngd_compile.fisher.output_side import OutputSide
from sngd_compile.modules import partial_state, program, reconstructed, whole_network
from sngd_compile.modules.reconstructed import Program
from sngd_compile.training import bias_groups, joint_roots, optimizer_hooks, transaction

JOINT = ("tests/training/test_joint_statistics.py",)


@caught_by(JOINT)
def joint_part_counts_again() -> None:
    """Each process sends what all hold already."""
    FisherLayer.own_part = lambda layer: (layer.sum, layer.tally[ROWS])


@caught_by(JOINT)
def gradients_of_one_process() -> None:
    """B takes the gradient of a process's own loss for that of the joint one."""
    wrap(
        OutputSide,
        "take_joint_",
        lambda original, side, sum, samples, processes: original(side, sum, samples, 1),
    )


@caught_by(("tests/training/test_wrapped_optimizers.py",))
def steps_inside_of_steps_count() -> None:
    """A step counts for each optimizer that takes part in it."""
    optimizer_hooks._outermost = lambda sites, around: list(sites)


@caught_by(("tests/capture/test_threads.py", "-k", "only_what"))
def nothing_was_read() -> None:
    """No attribute has a forward captured again."""

    def init(original: Any, made: Program, graph: Any, names_read: Any) -> None:
        original(made, graph, frozenset())

    wrap(Program, "__init__", init)


@caught_by(("tests/training/test_hooks.py", "-k", "thawed"))
def frozen_weights_are_observed() -> None:
    """A weight that is frozen, whose steps nobody counts, is observed in every one."""
    FisherLayer.is_observing = property(lambda layer: layer.schedule.observing)  # type: ignore[assignment]


SHARED = "tests/compile/test_shared_code.py"


@caught_by((SHARED, "-k", "names_mean"))
def names_mean_what_they_say() -> None:
    """Programs share a function whose names mean something else."""
    original = program._function_of
    known: dict[str, Any] = {}

    def shared(source: str, names: Any) -> Any:
        return known.setdefault(source, original(source, names))

    program._function_of = shared


@caught_by((SHARED, "-k", "container"))
def hooks_are_counted() -> None:
    """Hooks of a network have numbers of their own."""

    def surround(module: Any, before: Any, after: Any) -> None:
        module.register_forward_pre_hook(before)
        module.register_forward_hook(after, always_call=True)

    whole_network.surround_forward = surround


@caught_by(("tests/bad_input/test_damaged_state.py", "-k", "together"))
def half_a_state_is_loaded() -> None:
    """A root is loaded without its weight."""
    reconstructed.keep_together_ = lambda site, state, prefix: None


@caught_by(("tests/modules/test_forms_of_files.py", "-k", "any_order"))
def loading_another_form_moves_momenta() -> None:
    """Momenta that were loaded are moved as if they belonged to what the network was."""

    def change_form(original: Any, site: Any, joined: bool, optimizers: Any) -> None:
        original(site, joined, optimizer_hooks.known_optimizers())

    wrap(partial_state, "change_form_", change_form)


@caught_by(("tests/training/test_bias_apart.py", "-k", "loads"))
def groups_of_before() -> None:
    """The groups are looked at that an optimizer had before it loaded a state."""
    first: dict[Any, Any] = {}

    def group(original: Any, place: Any) -> Any:
        return first.setdefault(place, original(place))

    wrap(bias_groups.Place, "group", group)


@caught_by((*JOINT, "-k", "rounding"))
def rounding_is_no_symmetry() -> None:
    """A factor that several processes have added up is taken as it is."""
    FisherKind.with_mirror = lambda kind, half: half + half


@caught_by(("tests/modules/test_resume.py", "-k", "asking"))
def saving_is_a_step() -> None:
    """A step in which torch makes states of an optimizer counts."""
    optimizer_hooks.is_made_for_states = lambda optimizer: False


@caught_by(("tests/bad_input/test_damaged_state.py", "-k", "refuses"))
def modules_take_their_parts_first() -> None:
    """A state is looked at module by module."""
    whole_network.require_sound = lambda site, state, prefix: None


@caught_by(("tests/training/test_transaction.py", "-k", "shared_out"))
def the_first_process_does_all() -> None:
    """Every root is found by one process, and the others wait."""
    wrap(joint_roots, "owners_of", lambda original, layers, processes: [0] * len(layers))


@caught_by(("tests/training/test_transaction.py", "-k", "says_so"))
def who_fails_leaves() -> None:
    """A process that fails raises, and the others wait for it."""
    original = transaction.agreed

    def agreed(group: Any, layers: Any, count: int, find: Any, largest: bool = False) -> Any:
        found = find()
        return original(group, layers, count, lambda: found, largest)

    transaction.agreed = agreed
