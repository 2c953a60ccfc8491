"""A Ray Train trainer that starts fast: no torch in the controller, and no actor that a foldray run does not use.

On two cores a start is bound by CPU time: an actor takes 1.3 CPU seconds to import Ray's libraries, torch as much.
Seconds of the quickstart until its first step are in docs/DESIGN.md, Training.
"""

from typing import Any

from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from foldray.runtime.ray import owns_ray

UNUSED = {"DatasetsCallback"}
"""Callbacks of Ray Train whose actor serves datasets; workers here read shards by the epoch plan."""
UNUSED_ALONE = {"PlacementGroupCleanerCallback"}
"""Callbacks that free resources after a driver died; a Ray that ends with its driver frees everything."""


class WorkerBackend(Backend):
    """Workers set up torch.distributed themselves (`ray_worker.join_workers`)."""

    share_cuda_visible_devices = True  # as for Ray's torch backend: NCCL reaches the other GPUs of a node


class WorkerBackendConfig(BackendConfig):
    """Ray's TorchConfig without torch: the driver and the controller read it too."""

    @property
    def backend_cls(self) -> type[Backend]:
        """The backend of the workers."""
        return WorkerBackend


class FixedMachine(FixedScalingPolicy):
    """A fixed number of workers on a machine that does not grow: nothing to request from an autoscaler."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Start no coordinator."""

    def _maybe_send_resource_request(self) -> None:
        """Request nothing."""


class WorkerTrainer(DataParallelTrainer):
    """Runs a function on every worker, as `TorchTrainer` does."""

    def _create_default_callbacks(self) -> list[Any]:
        unused = UNUSED | (UNUSED_ALONE if owns_ray() else set())
        return [each for each in super()._create_default_callbacks() if type(each).__name__ not in unused]

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        if owns_ray() and type(options["scaling_policy"]) is FixedScalingPolicy:
            scaling: Any = self.scaling_config  # typed as its first version
            options["scaling_policy"] = FixedMachine(scaling)
        return super()._initialize_and_run_controller(**options)
