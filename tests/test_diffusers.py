import subprocess
import sys
from pathlib import Path

from tiny import tiny_dit_pipeline

PROGRAM = """
import sys
import compress.diffusers
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1])
assert type(pipeline) is compress.diffusers.ClassConditionalPixelPipeline, type(pipeline)
images = pipeline([1, 2, 3], num_inference_steps=2).images
print(len(images), images[0].size)
"""


def test_stock_from_pretrained_works_after_the_import(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tiny_dit_pipeline(tmp_path))]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "3 (8, 8)"
