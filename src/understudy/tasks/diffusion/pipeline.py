"""A diffusers pipeline that draws images of asked classes in the number of steps it was distilled to.

This file is copied beside every class-conditional model that understudy saves, and needs diffusers alone:
    DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)(class_labels=[3, 3, 7])
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.utils.torch_utils import randn_tensor


class ClassConditionalPipeline(DiffusionPipeline):
    """DDIM sampling by class.

    Args:
        unet: a class-conditional UNet2DModel.
        scheduler: a DDIMScheduler.
        steps: the number of steps that the model was distilled to, taken when none is asked for.
    """

    model_cpu_offload_seq = "unet"

    def __init__(self, unet: UNet2DModel, scheduler: DDIMScheduler, steps: int = 50) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=DDIMScheduler.from_config(scheduler.config))
        self.register_to_config(steps=steps)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int] | torch.Tensor,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Draw one image for each class number.

        Args:
            class_labels: class numbers.
            num_inference_steps: by default the number that the model was distilled to.
            generator: of the noise.
            output_type: `pil`, `np` or `pt`.
            return_dict: whether an `ImagePipelineOutput` is returned, or a tuple.
        """
        labels = torch.as_tensor(class_labels, dtype=torch.long, device=self._execution_device).reshape(-1)
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = (len(labels), self.unet.config.in_channels, height, width)
        image = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=self.unet.dtype)
        self.scheduler.set_timesteps(num_inference_steps or self.config["steps"])
        for time in self.progress_bar(self.scheduler.timesteps):  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]
            output = self.unet(image, time, class_labels=labels).sample
            image = self.scheduler.step(output, time, image, eta=0.0).prev_sample
        image = (image / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            image = image.cpu().permute(0, 2, 3, 1).float().numpy()
        if output_type == "pil":
            image = self.numpy_to_pil(image)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=image) if return_dict else (image,)  # pyright: ignore[reportArgumentType]
