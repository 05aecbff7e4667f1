"""Arrays -> video files, with sound or without.

write_mp4("clip.mp4", video_THWC)
write_mp4("clip.mp4", video_THWC, sound, rate_hz=16000)
"""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATE_FPS = 24


def write_mp4(
    path: Path,
    video_THWC: np.ndarray,
    sound: np.ndarray | None = None,
    rate_hz: int = 16000,
    crf: int = 18,
    key_every: int = 12,
) -> None:
    """Write uint8 [T, H, W, 3] as H.264, even height and width, at RATE_FPS; and float [samples] in [-1, 1]
    as AAC, mono. Both begin at time 0. crf: the codec's loss; 0: none, but for colours at half the resolution
    (yuv420p). key_every: most frames from one key frame to the next."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=RATE_FPS, options={"crf": str(crf), "preset": "veryfast"}
        )
        stream.height, stream.width = video_THWC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.gop_size = key_every
        stream.thread_count = 1
        audio = (
            None
            if sound is None
            else container.add_stream("aac", rate=rate_hz, layout="mono", bit_rate=96_000)
        )
        for frame_HWC in video_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode())
        if audio is not None:
            frame = av.AudioFrame.from_ndarray(
                np.asarray(sound, dtype=np.float32)[None], format="fltp", layout="mono"
            )
            frame.sample_rate, frame.pts, frame.time_base = rate_hz, 0, Fraction(1, rate_hz)
            container.mux(audio.encode(frame))
            container.mux(audio.encode())
