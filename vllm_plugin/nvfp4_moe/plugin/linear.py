"""The NVFP4 linear behind vLLM's linear kernel interface, and the override that dequantises chosen ones to bf16."""

from functools import cache, wraps

import torch
from vllm.forward_context import get_forward_context
from vllm.logger import init_logger
from vllm.model_executor.kernels import linear as vllm_linear
from vllm.model_executor.kernels.linear.nvfp4.base import NvFp4LinearKernel
from vllm.model_executor.layers.quantization import modelopt
from vllm.model_executor.layers.quantization.compressed_tensors.schemes import compressed_tensors_w4a4_nvfp4
from vllm.platforms import PlatformEnum, current_platform

import nvfp4_moe
from nvfp4_moe import Linear, LinearWeights

from . import scales, settings, support, workspace

logger = init_logger("vllm.nvfp4_moe")


class Nvfp4MoeLinearKernel(NvFp4LinearKernel):
    """out = x * weight^T; fused projections keep a global scale for each part.

    This name is what VLLM_DISABLED_KERNELS takes. --linear-backend with any other backend leaves it out.
    """

    @classmethod
    def is_supported(cls, compute_capability=None):
        """(can the library run here, why not)."""
        refusal = support.device_refusal(current_platform.device_type)
        return refusal is None, refusal

    @classmethod
    def can_implement(cls, config):
        """Any NVFP4 linear: the config says nothing about shapes, which prepare checks."""
        return True, None

    def process_weights_after_loading(self, layer):
        """Take the weights of one linear; vLLM has brought the names of all checkpoint formats to one by now."""
        log_active()
        name = layer.prefix
        runner = Bf16Linear(layer) if settings.wants_bf16(name) else Nvfp4Linear(layer)
        # Not a submodule: a kernel's state is no part of the model.
        object.__setattr__(layer, "nvfp4_moe_linear", runner)

    def apply_weights(self, layer, x, bias=None):
        """bf16 [..., in_features] to bf16 [..., out_features]."""
        out = layer.nvfp4_moe_linear(x)
        return out if bias is None else out + bias


class Nvfp4Linear:
    """A linear of the library over vLLM's parameters."""

    def __init__(self, layer):
        mode, _ = support.resolved_linear_mode(settings.mode())
        policy = settings.scale_policy() if mode == "nvfp4" else "static"
        self.name = layer.prefix
        self.calibrating: scales.LayerCalibration | None = None
        part_scales = global_scales(layer)
        self.linear = Linear(
            in_features=layer.input_size_per_partition,
            out_features=layer.output_size_per_partition,
            num_parts=len(part_scales),
            mode=mode,
            scale_policy="dynamic" if policy == "dynamic" else "static",
            device=layer.weight.device,
        )
        try:
            self.linear.prepare(
                LinearWeights(
                    weight=data(layer.weight),
                    block_scale=data(layer.weight_scale),
                    global_scale=part_scales,
                    part_rows=layer.logical_widths if len(part_scales) > 1 else (),
                    input_scale=self._input_scale(layer, mode, policy),
                )
            )
        except RuntimeError as error:
            raise ValueError(f"{self.name}: {error}") from None
        self.device = self.linear.device
        if self.device.type != "cpu":
            for name in ("weight", "weight_scale"):  # prepare has repacked them
                setattr(layer, name, torch.nn.Parameter(data(getattr(layer, name)).new_empty(0), requires_grad=False))
        workspace.reserve(self.device, self.linear.workspace_size)

    def _input_scale(self, layer, mode: str, policy: str) -> float:
        """Decoding input scale, 0 for none."""
        if mode != "nvfp4" or policy == "dynamic":
            return 0.0
        if policy == "calibrated":
            known = scales.calibration().known(self.name)
            if known is None:
                read = lambda: [self.linear.calibrated_scale()]  # noqa: E731
                self.calibrating = scales.LayerCalibration(self.name, read, self.linear.set_input_scale, use_ep=False)
            return known[0] if known else 0.0
        return input_scale(layer)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """bf16 [..., in_features] to bf16 [..., out_features]."""
        if self.calibrating:
            return self._calibrate(x)
        rows = x.reshape(-1, x.shape[-1])
        out = rows.new_empty((rows.shape[0], self.linear.out_features))
        self.linear.forward(rows, workspace=workspace.of(self.device), out=out)
        return out.view(*x.shape[:-1], -1)

    def _calibrate(self, x: torch.Tensor) -> torch.Tensor:
        """In bf16, remembering the largest input."""
        rows = x.reshape(-1, x.shape[-1])
        out = self.linear.calibrate(rows, workspace=workspace.of(self.device))
        if self.calibrating.finish(rows):
            self.calibrating = None
        return out.view(*x.shape[:-1], -1)


class Bf16Linear:
    """The override: the NVFP4 weight decoded to bf16 once, multiplied by torch; four times the memory."""

    def __init__(self, layer):
        weight, block_scale = data(layer.weight).cpu(), data(layer.weight_scale).cpu()
        self.name = layer.prefix
        self.input_scale = input_scale(layer)
        part_scales = global_scales(layer).tolist()
        widths = layer.logical_widths if len(part_scales) > 1 else [len(weight)]
        parts = zip(weight.split(widths), block_scale.split(widths), part_scales, strict=True)
        decoded = [nvfp4_moe.dequantize(*part).bfloat16() for part in parts]
        self.weight = torch.cat(decoded).to(layer.weight.device)
        for name in ("weight", "weight_scale"):
            setattr(layer, name, torch.nn.Parameter(data(getattr(layer, name)).new_empty(0), requires_grad=False))
        self.reported = False

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """bf16 [..., in_features] to bf16 [..., out_features]."""
        if not self.reported and counts_as_request(x):
            self.reported = True
            self._report(x)
        return torch.nn.functional.linear(x, self.weight)

    def _report(self, x: torch.Tensor) -> None:
        """Say what the first request would have lost to the checkpoint's input scale."""
        saturated, blocks, amax = saturation(x, self.input_scale) if self.input_scale else (0, 0, float(x.abs().max()))
        logger.info(
            "nvfp4_moe: %s is bf16 by %s; input_scale %.8g (calibrated amax %.3g) would have saturated %d of %d blocks "
            "in the first request (amax %.3g)",
            self.name,
            settings.BF16_LINEARS,
            self.input_scale,
            self.input_scale * 6 * 448,
            saturated,
            blocks,
            amax,
        )


def counts_as_request(x: torch.Tensor) -> bool:
    """May the host read x, and is it more than a profile run's? A graph under capture and a compiler forbid reading."""
    if torch.compiler.is_compiling() or (x.is_cuda and torch.cuda.is_current_stream_capturing()):
        return False
    return get_forward_context().attn_metadata is not None


def saturation(x: torch.Tensor, input_scale: float) -> tuple[int, int, float]:
    """(blocks whose scale passes 448, blocks, largest |x|) of [..., cols]. Source: nvfp4_moe_quantize."""
    amax = x.float().abs().unflatten(-1, (-1, 16)).amax(-1)
    encode = torch.tensor(1.0, dtype=torch.float32) / torch.tensor(input_scale, dtype=torch.float32)
    wanted = amax * (encode / 6).to(amax.device)
    return int((wanted > 448).sum()), wanted.numel(), float(amax.max())


def data(parameter: torch.Tensor) -> torch.Tensor:
    """The data without vLLM's tensor subclass."""
    return parameter.data.as_subclass(torch.Tensor)


def global_scales(layer) -> torch.Tensor:
    """f32 [num_parts], decoding: those that `keep_part_scales` kept, else the one that vLLM reduced them to."""
    kept = getattr(layer, "nvfp4_moe_part_scales", None)
    return data(layer.weight_global_scale).float().reshape(1) if kept is None else kept


def input_scale(layer) -> float:
    """The checkpoint's decoding input scale, the largest of the parts; 0 if there is none."""
    return getattr(layer, "nvfp4_moe_input_scale", 0.0)


def keep_part_scales(method: type, weight_scale: str, input_scale: str, *, encodes: bool) -> None:
    """Remember the global scales of all parts of a fused linear before vLLM reduces each kind to one.

    Patches `process_weights_after_loading` of vLLM's NVFP4 linear methods. Why: where q, k and v (or wq_a and wkv) have
    different global scales, the maximum decodes all but one of them wrongly, and the maximum of compressed-tensors'
    encoding input scales saturates all but one; vLLM warns and goes on. The method still does its own work afterwards.
    Delete when vLLM hands all parts' scales to the kernel.
    """
    original = method.process_weights_after_loading
    if getattr(original, "keeps_part_scales", False):
        return

    def decoding(layer, name: str) -> torch.Tensor:
        stored = data(getattr(layer, name)).float().contiguous()
        return 1.0 / stored if encodes else stored

    @wraps(original)
    def process_weights_after_loading(self, layer):
        if isinstance(self.kernel, Nvfp4MoeLinearKernel):
            layer.nvfp4_moe_part_scales = decoding(layer, weight_scale)
            if hasattr(layer, input_scale):
                layer.nvfp4_moe_input_scale = float(decoding(layer, input_scale).max())
        original(self, layer)

    process_weights_after_loading.keeps_part_scales = True
    method.process_weights_after_loading = process_weights_after_loading


def install() -> None:
    """Register the kernel, first in vLLM's selection on both platforms."""
    for platform in (PlatformEnum.CPU, PlatformEnum.CUDA):
        vllm_linear.register_linear_kernel(Nvfp4MoeLinearKernel, platform, "nvfp4")
        place_first(vllm_linear._POSSIBLE_NVFP4_KERNELS[platform])
    # 0.26 has a method for each ModelOpt format; later versions have one for all.
    modelopt_method = getattr(modelopt, "ModelOptNvFp4LinearMethod", None) or modelopt.ModelOptLinearMethod
    keep_part_scales(modelopt_method, "weight_scale_2", "input_scale", encodes=False)
    compressed_method = compressed_tensors_w4a4_nvfp4.CompressedTensorsW4A4Fp4
    keep_part_scales(compressed_method, "weight_global_scale", "input_global_scale", encodes=True)


def place_first(kernels: list[type]) -> None:
    """Move the kernel that was registered last to the front.

    Touches a private list. Why: registration appends, behind an emulation that supports everything, so that a kernel
    registered there is never reached. Delete when `register_linear_kernel` takes a priority.
    """
    kernels.insert(0, kernels.pop())


@cache
def log_active() -> None:
    """The line that says that the linears are ours, once in a process."""
    mode, reason = support.resolved_linear_mode(settings.mode())
    logger.info(
        "nvfp4_moe %s is ACTIVE for NVFP4 linears on %s: mode %s, because %s. Off: VLLM_DISABLED_KERNELS=%s.",
        nvfp4_moe.__version__,
        current_platform.device_type,
        mode,
        reason,
        Nvfp4MoeLinearKernel.__name__,
    )
