"""Makes diffusers know us: after `import compress.diffusers` it loads compressed components and our pipelines.

import compress.diffusers
from diffusers import DiffusionPipeline, DiTTransformer2DModel

pipe = DiffusionPipeline.from_pretrained("OUT/checkpoint")
denoiser = DiTTransformer2DModel.from_pretrained("OUT/checkpoint", subfolder="transformer")
"""

from __future__ import annotations

from compress.checkpoint.quantizer import register as register_quantizer
from compress.models.pipelines import pixel_pipeline_class, register_pipelines

__all__ = ["ClassConditionalPixelPipeline"]

register_quantizer()
register_pipelines()
ClassConditionalPixelPipeline = pixel_pipeline_class()
