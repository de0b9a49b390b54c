"""Pictures and sound as bytes of a file: PNG by Pillow, FLAC by PyAV, which ComfyUI requires itself."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["flac", "metadata", "pngs"]

_LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "quad", 5: "5.0", 6: "5.1", 8: "7.1"}


def metadata(prompt: Any, extra_pnginfo: Any) -> dict[str, str]:
    """What ComfyUI's own save nodes write into files: the prompt, and the workflow as drawn, as JSON."""
    found = {} if prompt is None else {"prompt": json.dumps(prompt)}
    if isinstance(extra_pnginfo, Mapping):
        found |= {str(key): json.dumps(value) for key, value in extra_pnginfo.items()}
    return found


def pngs(images: Any, texts: Mapping[str, str]) -> Iterator[bytes]:
    """Each picture of the batch *images* (``[batch, height, width, channel]``, 0 to 1) as a PNG with *texts*."""
    import numpy as np
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    for image in images:
        array = np.asarray(image.cpu() if hasattr(image, "cpu") else image)
        if array.shape[-1] == 1:
            array = array[..., 0]
        information = PngInfo()
        for key, value in texts.items():
            information.add_text(key, value)
        data = io.BytesIO()
        pixels = np.clip(255.0 * array, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(data, format="PNG", pnginfo=information, compress_level=4)
        yield data.getvalue()


def flac(waveform: Any, sample_rate: int, texts: Mapping[str, str]) -> bytes:
    """*waveform* (``[channel, sample]``, -1 to 1) at *sample_rate* hertz as FLAC with *texts*."""
    import av
    import numpy as np

    samples = np.ascontiguousarray(np.asarray(waveform.cpu() if hasattr(waveform, "cpu") else waveform, np.float32))
    layout = _LAYOUTS.get(samples.shape[0])
    if layout is None:
        raise ValueError(f"The sound has {samples.shape[0]} channels; FLAC takes {', '.join(map(str, _LAYOUTS))}.")
    data = io.BytesIO()
    with av.open(data, mode="w", format="flac") as container:
        container.metadata.update(texts)
        stream = container.add_stream("flac", rate=int(sample_rate), layout=layout)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate = int(sample_rate)
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return data.getvalue()
