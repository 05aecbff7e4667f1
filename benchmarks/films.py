"""Small films of every kind, and what decoding from the first frame to the last gives of them."""

from fractions import Fraction

import av
import numpy as np

H, W, FRAMES = 64, 80, 45
B_FRAMES = {"g": "12", "bf": "3", "sc_threshold": "0"}


def plane_of_noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """float64 [H, W, 3] around 128, whose power falls with frequency as a photograph's does."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)) + 1 / 512
    noise = np.fft.rfft2(rng.normal(size=(3, height, width)))
    plane = np.fft.irfft2(noise / frequency**1.3, (height, width))
    return 128 + 50 / plane.std() * plane.transpose(1, 2, 0)


def film(path, codec="libx264", pixels="yuv420p", options=B_FRAMES, params=None, times=None):
    """FRAMES frames of coarse noise that drifts and changes; times: of each in ms, 25 a second where None."""
    plane = np.random.default_rng(0).integers(0, 256, (H // 8 + 8, W // 8 + 8, 3)).repeat(8, 0).repeat(8, 1)
    changes = np.random.default_rng(1).integers(-9, 10, (FRAMES, H // 4, W // 4, 1))
    changes = changes.repeat(4, 1).repeat(4, 2)
    options = {**options, **({f"{codec.removeprefix('lib')}-params": params} if params else {})}
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = W, H, pixels, 1
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for n in range(FRAMES):
            image = plane[n // 2 : n // 2 + H, n : n + W] + changes[n]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image.clip(0, 255), np.uint8))
            frame.pts = n if times is None else times[n]
            if times is not None:
                frame.time_base = Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


X265 = "log-level=0:pools=1:frame-threads=1:keyint=12:bframes=3"
HEVC = dict(codec="libx265", options={"preset": "ultrafast"})
VP9 = dict(codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8", "g": "12"})
AV1 = dict(codec="libsvtav1", options={"preset": "12", "svtav1-params": "lp=1:keyint=12"})
VARIABLE = np.cumsum([20 + 37 * (n % 5) for n in range(FRAMES)]).tolist()
MATRIX = {
    "h264.mp4": {},
    "h264.mkv": {},
    "h264.mov": {},
    "h264.ts": {},
    "h264.avi": dict(options={"g": "12", "bf": "0"}),
    "one_key.mp4": dict(options={"g": "250", "bf": "3"}),
    "no_b.mp4": dict(options={"g": "12", "bf": "0"}),
    "no_pyramid.mp4": dict(params="b-pyramid=none:bframes=5:b-adapt=0:keyint=20"),
    "strict_pyramid.mp4": dict(params="b-pyramid=strict:bframes=7:b-adapt=0:keyint=30"),
    "many_references.mp4": dict(params="ref=8:bframes=8:weightp=2:keyint=40"),
    "few_numbers.mp4": dict(params="ref=1:bframes=1:keyint=250:b-pyramid=none"),
    "slices.mkv": dict(params="slices=4:bframes=3:keyint=12"),
    "open.mp4": dict(params="open-gop=1:bframes=3:keyint=12:scenecut=0"),
    "refreshed.mp4": dict(params="intra-refresh=1:keyint=12"),
    "fields.mp4": dict(params="tff=1:bframes=3:keyint=12"),
    "fake_fields.mp4": dict(params="fake-interlaced=1:bframes=3:keyint=12"),
    "h264_10.mp4": dict(pixels="yuv420p10le"),
    "h264_444.mp4": dict(pixels="yuv444p"),
    "lists.mp4": dict(params="cqm=jvt:bframes=3:keyint=12"),
    "variable.mp4": dict(times=VARIABLE),
    "variable.mkv": dict(times=VARIABLE),
    "hevc.mp4": dict(**HEVC, params=f"{X265}:open-gop=0"),
    "hevc_open.mkv": dict(**HEVC, params=X265),
    "hevc_layers.mp4": dict(**HEVC, params=f"{X265}:temporal-layers=3:bframes=7:b-adapt=0:rc-lookahead=20"),
    "hevc_pyramid.mp4": dict(
        **HEVC, params=f"{X265}:bframes=8:b-adapt=0:ref=5:keyint=40:slices=2:rc-lookahead=20"
    ),
    "hevc_no_pyramid.mkv": dict(**HEVC, params=f"{X265}:b-pyramid=0:bframes=5:b-adapt=0:rc-lookahead=20"),
    "hevc_no_b.mp4": dict(**HEVC, params=f"{X265}:bframes=0"),
    "hevc.ts": dict(**HEVC, params=X265),
    "hevc_fields.mp4": dict(**HEVC, params=f"{X265}:interlace=tff"),
    "hevc_lists.mp4": dict(**HEVC, params=f"{X265}:scaling-list=default"),
    "hevc_10.mp4": dict(**HEVC, params=X265, pixels="yuv420p10le"),
    "vp9.webm": VP9,
    "vp9.mp4": VP9,
    "av1.mp4": AV1,
    "av1.mkv": dict(**AV1, pixels="yuv420p10le"),
    "mpeg4.mp4": dict(codec="mpeg4", options={"g": "12", "bf": "2"}),
    "mpeg4.avi": dict(codec="mpeg4", options={"g": "12"}),
    "mpeg1.mpg": dict(codec="mpeg1video", options={"g": "12", "bf": "2"}),
    "mjpeg.avi": dict(codec="mjpeg", pixels="yuvj420p", options={}),
    "mjpeg.mov": dict(codec="mjpeg", pixels="yuvj420p", options={}),
    "prores.mov": dict(codec="prores_ks", pixels="yuv422p10le", options={}),
}


def copy(source, target, first: int, shift: int = 0, **options):
    """The packets of a film from number `first` on, in decoding order, in another file; each is shown `shift`
    frames earlier."""
    with av.open(str(source)) as old, av.open(str(target), "w", **options) as new:
        stream = old.streams.video[0]
        out = new.add_stream_from_template(stream)
        later = int(shift / 25 / stream.time_base)
        for packet in [p for p in old.demux(stream) if p.size][first:]:
            packet.pts, packet.dts, packet.stream = packet.pts - later, packet.dts - later, out
            new.mux(packet)
    return target


def sequential(path):
    with av.open(str(path)) as file:
        stream = file.streams.best("video")
        stream.thread_count = 1
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(stream)])


def wishes(frames):
    """Frames that are asked for together."""
    rng = np.random.default_rng(frames)
    for stride in (1, 2, 4, 7):
        yield list(range(int(rng.integers(stride)), frames, stride))
    for _ in range(12):
        yield sorted(rng.choice(frames, int(rng.integers(1, 5)), replace=False).tolist())
    yield from ([0], [frames - 1], [0, frames - 1])
