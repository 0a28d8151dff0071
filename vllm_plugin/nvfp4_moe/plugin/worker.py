# SPDX-License-Identifier: Apache-2.0
"""What a served worker can be asked: vLLM mixes this class into its workers where it is named.

    vllm serve ... --worker-extension-cls nvfp4_moe.plugin.worker.Counters

Over HTTP vLLM offers a worker's methods only in its development mode (VLLM_SERVER_DEV_MODE=1), because they are not for
the public.
"""

from nvfp4_moe import read_device_status, reset_device_status


class Counters:
    """Methods of a worker, whose names must be nobody else's."""

    def nvfp4_moe_counters(self) -> dict[str, int | str]:
        """The counters of this worker's device since the last reset; waits for its stream."""
        return {"device": str(self.device), **read_device_status(self.device)._asdict()}

    def nvfp4_moe_reset_counters(self) -> None:
        """Set them to zero."""
        reset_device_status(self.device)
