"""Where Ray puts an actor or a task."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def here(*, soft: bool = False) -> "NodeAffinitySchedulingStrategy":
    """Return the scheduling strategy "on this node"; `soft`: elsewhere if this node is gone."""
    import ray
    from ray.util import scheduling_strategies

    return scheduling_strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=soft)
