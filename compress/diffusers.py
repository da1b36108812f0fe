"""Makes diffusers know our classes: `import compress.diffusers`, then `DiffusionPipeline.from_pretrained(folder)`."""

from __future__ import annotations

from compress.models.pipelines import pixel_pipeline_class, register_pipelines

__all__ = ["ClassConditionalPixelPipeline"]

register_pipelines()
ClassConditionalPixelPipeline = pixel_pipeline_class()
