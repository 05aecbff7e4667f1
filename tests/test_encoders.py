"""Every registered encoder: width, gradients, weights from files, and what it says when used wrongly."""

import copy
import importlib.util
import math
import sys

import exporting
import numpy as np
import pytest
import torch
import torchvision
from torchvision.models.regnet import BlockParams
from wrong import refused

from vicjoint import registry
from vicjoint.batch import concatenate
from vicjoint.registry import ComponentError
from vicjoint.tokens import TokenEncoder, Tokens, tokens_of

registry.load_encoder_folders()  # before collection: the tests below are made from the registry itself
BUILT_IN = {
    key
    for key, encoder in registry._components["encoder"].items()
    if encoder.__module__.startswith("encoders.")
}
LIBRARY = {f"image/{name}" for name in torchvision.models.list_models(module=torchvision.models)}
LIBRARY |= {f"clip/{name}" for name in torchvision.models.list_models(module=torchvision.models.video)}

# options and view size of those that are run; one line here lets a new small encoder be tested with other
# options
TINY_VIT = {"model": "vit", "config": exporting.TINY_VIT}
OPTIONS = {
    "image/transformers": TINY_VIT,
    "image/timm": {"model": "test_resnet"},
    "audio/transformers": {
        "model": "wav2vec2",
        "config": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "conv_dim": [8] * 7,
            "num_conv_pos_embeddings": 8,
            "num_conv_pos_embedding_groups": 2,
        },
    },
    "clip/transformers": {
        "model": "vjepa2",
        "config": {
            **{"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "crop_size": 16},
            **{"patch_size": 8, "frames_per_clip": 4, "pred_hidden_size": 24, "pred_num_hidden_layers": 1},
            **{"pred_num_attention_heads": 2, "pred_num_mask_tokens": 1},
        },
    },
    "clip/frames_transformer": {"image": {"name": "conv", "width": 4}, "dim": 16, "layers": 1},
    "clip/each_frame": {"image": {"name": "conv", "width": 4, "dim": 16}},
    "clip/conv_stack": {"frames": 4},
    "image/vit_b_16": {"image_size": 16},
    "clip/mvit_v2_s": {"spatial_size": [32, 32], "temporal_size": 4},
    "text/transformers": {
        "model": "bert",
        "config": {
            "vocab_size": 40,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
        },
    },
}
SIZE = {"image/transformers": 16, "image/vit_b_16": 16}
SMALL = sorted(BUILT_IN - LIBRARY - ({"image/timm"} if importlib.util.find_spec("timm") is None else set()))
RUN = [
    "image/resnet18",
    "image/vit_b_16",
    "image/convnext_tiny",
    "image/squeezenet1_1",
    "clip/r3d_18",
    "clip/swin3d_t",
    "clip/mvit_v2_s",
]


@pytest.fixture(autouse=True)
def only_encoders(monkeypatch):
    monkeypatch.setattr(registry, "_loaded", True)  # the encoders are under test, not the other components
    torch.manual_seed(0)


def make(key: str, **options):
    modality, name = key.split("/")
    return registry.build_encoder(modality, name, **(options or OPTIONS.get(key, {})))


def make_view(key: str, batch: int = 2, frames: int = 4, size: int = 32) -> torch.Tensor:
    if key.startswith("molecule/"):
        pytest.importorskip("rdkit")
        from vicjoint.modalities.molecule import Graphs, Molecule

        return Molecule()(Graphs.concatenate([Molecule().read("CCO"), Molecule().read("c1ccccc1")]))
    if key.startswith(("text/", "protein/")):
        return torch.randint(4, 24, (batch, 12)), torch.arange(12) < torch.tensor(
            [[12]] + [[5]] * (batch - 1)
        )
    if key.startswith("features/"):
        return torch.randn(batch, 3, 512), torch.arange(3) < torch.tensor([[3]] + [[2]] * (batch - 1))
    if key.startswith("audio/"):
        return 0.1 * torch.randn(batch, 8000)
    size = SIZE.get(key, size)
    return (
        torch.randn(batch, 3, frames, size, size)
        if key.startswith("clip/")
        else torch.randn(batch, 3, size, size)
    )


@pytest.mark.parametrize("key", SMALL + RUN)
def test_representation_has_the_stated_width_and_reaches_every_parameter(key):
    encoder = make(key)
    y = encoder(make_view(key))
    assert y.shape == (2, encoder.dim) and y.isfinite().all()
    y.square().sum().backward()
    without = [name for name, p in encoder.named_parameters() if p.grad is None]
    assert not without, f"no gradient reaches {without}"


@pytest.mark.parametrize("key", sorted(LIBRARY))
def test_library_models_state_the_width_their_head_took(key, monkeypatch):
    on_meta = BlockParams.from_init_params.__func__

    def on_cpu(cls, *args, **kwargs):  # RegNet computes its widths with tensors, which have no values on meta
        with torch.device("cpu"):
            return on_meta(cls, *args, **kwargs)

    monkeypatch.setattr(BlockParams, "from_init_params", classmethod(on_cpu))
    name = key.split("/")[1]
    with torch.device("meta"):
        encoder = make(key)
        settings = (
            {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
        )
        complete = torchvision.models.get_model(name, weights=None, **settings)
    kept = dict(encoder.named_parameters())
    lost = {n: p for n, p in complete.named_parameters() if n not in kept}
    classes = 400 if key.startswith("clip/") else 1000
    # the classifier's weight, and mostly a bias
    assert sum(p.ndim > 1 for p in lost.values()) == 1 and len(lost) <= 2
    weight = max(lost.values(), key=lambda p: p.ndim)
    assert weight.shape[:2] == (classes, encoder.dim)


def test_position_survives_the_small_cnns():
    for key in ("image/conv", "next_frame/conv_coords"):
        view = torch.zeros(2, 3, 64, 64)
        view[0, :, 8:16, 8:16] = view[1, :, 40:48, 40:48] = 1  # the same square in two places
        first, second = make(key).eval()(view)
        assert (first - second).norm() > 0.1 * first.norm()


def test_clip_encoders_see_the_order_of_frames():
    view = torch.randn(2, 3, 4, 32, 32)
    for key in (
        "clip/conv_gru",
        "clip/conv_time",
        "clip/conv_stack",
        "clip/frames_transformer",
        "clip/frame_and_motion",
    ):
        encoder = make(key).eval()
        if hasattr(encoder, "change"):  # starts at zero
            torch.nn.init.normal_(encoder.change.weight)
        assert not torch.allclose(encoder(view), encoder(view.flip(2)), atol=1e-4), key


def test_conv_time_sees_differences_from_the_mean_and_from_the_frame_before():
    """Its first convolution, which takes differences between maps, against the same convolution of the
    pixels' differences; and the gradient."""
    encoder = make("clip/conv_time", width=4, features=6, slots=3, dim=5).double()
    view = torch.randn(2, 3, 7, 24, 24, dtype=torch.float64)
    change = torch.cat([torch.zeros_like(view[:, :, :1]), view[:, :, 1:] - view[:, :, :-1]], 2)
    pixels = torch.cat([view - view.mean(2, keepdim=True), change], 1).transpose(1, 2).flatten(0, 1)
    conv = encoder.trunk.layers[0]
    expected, got = conv(pixels), encoder._of_differences(view)
    assert torch.allclose(got, expected, atol=1e-12) and got.std() > 0.1
    weight = torch.randn_like(got)
    of_expected, of_got = (
        torch.autograd.grad((maps * weight).sum(), conv.weight)[0] for maps in (expected, got)
    )
    assert torch.allclose(of_got, of_expected, atol=1e-10)
    features = encoder.frame(encoder.trunk(pixels)).unflatten(0, (2, 7)).transpose(1, 2)
    assert torch.allclose(encoder(view), encoder.slots(encoder.time(features)), atol=1e-12)


def test_parts_of_time_are_kept_apart_at_any_length():
    for key, shape, time in (("clip/conv_time", (1, 3, 48, 32, 32), 2), ("audio/conv_time", (1, 32000), 1)):
        encoder = make(key, slots=4).eval()
        seen = []
        encoder.slots.project.register_forward_hook(
            lambda _, given, __: seen.append(given[0].unflatten(1, (-1, 4)))
        )
        eighth, early, late = shape[time] // 8, torch.zeros(shape), torch.zeros(shape)
        event = torch.randn_like(early.narrow(time, 0, eighth))
        early.narrow(time, shape[time] // 16, eighth).copy_(event)  # in the middle of the first quarter
        late.narrow(time, shape[time] * 9 // 16, eighth).copy_(event)  # of the third
        with torch.no_grad():
            encoder(early), encoder(late)
            assert encoder(late.narrow(time, 0, shape[time] * 3 // 4)).shape == (1, encoder.dim)
        change = (seen[1] - seen[0]).abs().sum((0, 1))
        assert change[[0, 2]].min() > 1.5 * change[1] and change[[0, 2]].min() > 2 * change[3], (key, change)


def test_frame_and_motion_starts_as_a_copy_of_the_last_frame_and_moves_on():
    encoder, view = make("clip/frame_and_motion").eval(), torch.randn(2, 3, 4, 32, 32)
    last = encoder(view[:, :, -1])
    assert last.shape == (2, encoder.dim) and torch.equal(encoder(view), last)
    torch.nn.init.normal_(encoder.change.weight)
    moved = encoder(view) - last
    before = view.clone()
    before[:, :, 0] += 1  # only the change depends on frames before the last
    assert moved.abs().min() > 0 and not torch.allclose(encoder(before) - last, moved)
    assert torch.equal(encoder(view[:, :, -1]), last)


def test_frame_and_motion_serves_both_branches():
    from vicjoint.model import Branch, Model

    branch = Branch(torch.nn.Identity(), make("clip/frame_and_motion"), [8, 4])
    model = Model({"a": branch, "b": branch}, [("a", "b")]).eval()
    view = torch.randn(2, 3, 4, 32, 32)
    z_a, z_b = model(view, view[:, :, -1])
    # before training the prediction is the last frame, whichever frame comes next
    assert torch.equal(z_a, z_b)
    assert not torch.allclose(model(view, view[:, :, 0])[1], z_b)


def test_a_next_frame_may_use_any_image_encoder():
    names = registry.list_encoders("next_frame")
    assert {"conv", "conv_coords", "resnet18", "transformers"} <= set(names)
    assert registry.build_encoder("next_frame", "conv", width=4, dim=8)(torch.randn(2, 3, 20, 28)).shape == (
        2,
        8,
    )


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_local_file(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    complete = torchvision.models.resnet18().eval()
    if suffix == ".pth":
        torch.save(complete.state_dict(), path)
    else:
        from safetensors.torch import save_file

        save_file(complete.state_dict(), path)
    encoder = make("image/resnet18", weights=str(path)).eval()
    view = torch.randn(2, 3, 32, 32)
    assert torch.equal(complete.fc(encoder(view)), complete(view))
    torch.save(encoder.state_dict(), tmp_path / "headless.pth")
    again = make("image/resnet18", weights=str(tmp_path / "headless.pth")).eval()
    assert torch.equal(again(view), encoder(view))


def test_a_video_transformer_of_the_published_size_is_torchvisions_own():
    complete = torchvision.models.video.mvit_v2_s()
    with torch.device("meta"):
        rebuilt = make("clip/mvit_v2_s", spatial_size=[224, 224], temporal_size=16)
    shapes = {
        name: value.shape for name, value in complete.state_dict().items() if not name.startswith("head.")
    }
    assert {name: value.shape for name, value in rebuilt.state_dict().items()} == shapes


def test_vit_positions_follow_the_image_size(tmp_path):
    encoder = make("image/vit_b_16", image_size=48)
    torch.save(encoder.state_dict(), tmp_path / "vit.pth")
    smaller = make("image/vit_b_16", image_size=32, weights=str(tmp_path / "vit.pth"))
    assert smaller.encoder.pos_embedding.shape[1] == 1 + 4
    assert smaller(torch.randn(1, 3, 32, 32)).shape == (1, 768)


def test_transformers_from_a_local_folder(tmp_path):
    encoder = make("image/transformers").eval()
    encoder.model.save_pretrained(tmp_path)
    again = make("image/transformers", weights=str(tmp_path)).eval()
    view = torch.randn(2, 3, 16, 16)
    assert torch.equal(again(view), encoder(view))


def test_residual_options():
    small = make("image/resnet18", stem="small", zero_init_residual=True)
    assert small.conv1.stride == (1, 1) and not small.layer1[0].bn2.weight.any()
    assert small(torch.randn(2, 3, 16, 16)).shape == (2, 512)


@pytest.mark.parametrize(
    "key, options, message",
    [
        (
            "image/resnet18",
            {"weights": "nowhere/w.pth"},
            (
                r"'nowhere/w.pth' were not found: no file .*nowhere/w.pth.*Pretrained names for resnet18:"
                r" IMAGENET1K_V1"
            ),
        ),
        ("image/resnet18", {"weights": "IMAGENET1K_V3"}, r"Did you mean 'IMAGENET1K_V1'"),
        ("image/resnet18", {"stem": "tiny"}, r"stem is 'tiny', expected 'imagenet' or 'small'"),
        ("image/transformers", {"model": "vitt"}, r"no model type 'vitt'. Did you mean 'vit'"),
        (
            "image/transformers",
            {"model": "vit", "config": {"hidden_sise": 8}},
            r"no key 'hidden_sise'. Did you mean 'hidden_size'",
        ),
        ("image/transformers", {"weights": "./nowhere"}, r"'./nowhere' were not found: no folder"),
        ("image/transformers", {"config": {"hidden_size": 8}}, r"takes either model"),
        (
            "image/transformers",
            {"model": "bert", "config": {"hidden_size": 12, "num_hidden_layers": 1, "vocab_size": 8}},
            r"takes input_ids, not images",
        ),
        ("clip/frames_transformer", {"image": {"width": 4}}, r"expected an image encoder such as"),
        (
            "clip/frames_transformer",
            {"image": {"name": "conv"}, "dim": 10, "heads": 4},
            r"dim 10 cannot be shared by 4 heads",
        ),
        ("clip/frame_and_motion", {"frames": 1}, r"frames is 1, which shows no motion"),
        ("clip/mvit_v2_s", {"spatial_size": [60, 60]}, r"multiples of 32"),
        ("image/pooled_conv", {"widths": [8, 16], "strides": [2]}, r"2 widths and 1 strides"),
    ],
)
def test_wrong_options_are_named(key, options, message):
    refused("encoder", key, options, message)


@pytest.mark.parametrize(
    "key, shape, message",
    [
        ("clip/conv_stack", (2, 3, 5, 32, 32), r"built for 4 frames, got a clip of 5"),
        ("clip/frame_and_motion", (2, 3, 5, 32, 32), r"built for 4 frames, got a clip of 5"),
        (
            "clip/mvit_v2_s",
            (1, 3, 8, 32, 32),
            r"built for views of \[4, 32, 32\], got \[8, 32, 32\]. Set the encoder's temporal_size",
        ),
        (
            "image/vit_b_16",
            (1, 3, 64, 64),
            r"built for views of \[16, 16\], got \[64, 64\]. Set the encoder's image_size",
        ),
        ("clip/frames_transformer", (1, 3, 65, 16, 16), r"at most 64 frames, got 65"),
    ],
)
def test_wrong_views_are_named(key, shape, message):
    with pytest.raises(ValueError, match=message):
        make(key)(torch.randn(shape))


def test_weights_that_do_not_fit_and_cannot_be_fetched(tmp_path, monkeypatch):
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "other.pth")
    with pytest.raises(ComponentError, match=r"do not fit this model.*unknown: layer1.2"):
        make("image/resnet18", weights=str(tmp_path / "other.pth"))
    (tmp_path / "broken.pth").write_bytes(b"not weights")
    with pytest.raises(ComponentError, match=r"cannot read weights from .*broken.pth"):
        make("image/resnet18", weights=str(tmp_path / "broken.pth"))

    def offline(self, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", offline)
    with pytest.raises(
        ComponentError, match=r"could not be downloaded from https://.*no route to host.*give a local file"
    ):
        make("image/resnet18", weights="IMAGENET1K_V1")


def test_conv_stack_sees_frames_and_their_differences():
    """The convolution with moved weights equals one over frames and differences side by side."""
    torch.manual_seed(0)
    encoder = registry.build_encoder("clip", "conv_stack", width=4, frames=5).double().eval()
    view = torch.randn(2, 3, 5, 32, 32, dtype=torch.float64)
    first = encoder.trunk.layers[0]
    stacked = torch.cat([view, view.diff(dim=2)], 2).flatten(1, 2)
    assert torch.allclose(first(view.flatten(1, 2)), first.conv(stacked), atol=1e-12)


def test_timm(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    original = timm.create_model("test_vit", num_classes=0, img_size=32)
    torch.save(original.state_dict(), tmp_path / "vit.pth")
    loaded = make("image/timm", model="test_vit", weights=str(tmp_path / "vit.pth"), options={"img_size": 32})
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.eval()(x), original.eval()(x)) and loaded.dim == original(x).shape[1]
    for options, message in [
        ({"model": "test_vitt"}, "no model 'test_vitt'. Did you mean 'test_vit'"),
        (
            {"model": "test_vit", "weights": "absent.pth"},
            "weights 'absent.pth' were not found: no file /.*absent.pth",
        ),
        ({"model": "test_vit", "options": {"depht": 1}}, "cannot make 'test_vit' .*depht"),
    ]:
        with pytest.raises(ComponentError, match=message):
            make("image/timm", **options)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ComponentError, match=r"encoder 'timm' needs timm .*: pip install 'vicjoint\[timm\]'"):
        make("image/timm", model="test_vit")


# ---- tokens ----


def make_long_view(key: str):
    """One of more than one token: a picture that stays a map, two texts with words in them."""
    if key.startswith("text/word"):
        from vicjoint.modalities.text import Text

        return Text()(concatenate([Text().read("three short words"), Text().read("two more")]))
    return make_view(key, size=64, frames=16 if key == "clip/s3d" else 4)


def tokens(encoder, view) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return tokens_of(encoder.eval(), view)[:2]


SMALL_SWIN = {"image_size": 64, "window_size": 2, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4}
SWIN = {"img_size": [32, 64], "window_size": 2, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4}
# (encoder, options, size of a view, the grid, tokens before its cells)
GRIDS = [
    ("image/conv", {}, (64, 128), (4, 8), 0),
    ("image/resnet18", {"stem": "small"}, (32, 64), (4, 8), 0),
    ("image/vit_b_16", {"image_size": 32}, (32, 32), (2, 2), 1),
    ("image/transformers", TINY_VIT, (16, 16), (2, 2), 1),
    ("image/transformers", {"model": "swin", "config": SMALL_SWIN}, (64, 64), None, 4),
    ("image/timm", {"model": "test_vit", "options": {"dynamic_img_size": True}}, (32, 64), (2, 4), 1),
    ("image/timm", {"model": "swin_tiny_patch4_window7_224", "options": SWIN}, (32, 64), (1, 2), 0),
    ("clip/frames_transformer", OPTIONS["clip/frames_transformer"], (4, 32, 32), (4,), 1),
    ("clip/r3d_18", {}, (4, 32, 64), (1, 2, 4), 0),
]


@pytest.mark.parametrize("key, options, size, grid, before", GRIDS)
def test_tokens_lie_on_a_grid(key, options, size, grid, before):
    """Its cells are the last tokens, row by row: of a view that changes at its first row's end, what is
    there changes most."""
    if key == "image/timm":
        pytest.importorskip("timm")
    encoder, view = make(key, **options).eval(), torch.randn(1, 3, *size)
    other = view.clone()
    if grid and len(grid) > 1:
        other[..., : size[-2] // grid[-2], size[-1] - size[-1] // grid[-1] :] += 3
    elif grid:
        other[:, :, -1] += 3
    with torch.no_grad():
        (x, _, found), (y, _, _) = (tokens_of(encoder, of) for of in (view, other))
    assert found == grid and x.shape[1] == before + (math.prod(grid) if grid else 0)
    if grid:
        changed = (x - y)[0, before:].norm(dim=1).unflatten(0, grid)
        *_, row, column = (0, *np.unravel_index(int(changed.argmax()), grid))
        assert column == grid[-1] - 1 and (len(grid) == 1 or row <= (grid[-2] - 1) // 2), changed


@pytest.mark.parametrize("key", SMALL + RUN)
def test_every_shipped_encoder_gives_tokens(key):
    encoder = make(key)
    view = make_view(key) if key == "clip/mvit_v2_s" else make_long_view(key)
    x, mask = tokens(encoder, view)
    assert x.ndim == 3 and len(x) == 2 and x.shape[1] > 1 and x.isfinite().all()
    assert mask.dtype == torch.bool and mask.shape == x.shape[:2] and mask.any(1).all()
    assert x[mask].std(0).max() > 0  # they differ


# how y comes from the tokens x, where that is a mean, or one of them
MEAN_OF = {
    "audio/resnet18_mel": {},
    "audio/resnet1d18": {"width": 4},
    "audio/transformer_mel": {"width": 16, "layers": 1},
    "audio/transformers": {},
    "image/pooled_conv": {"pool": 1},
    "image/resnet18": {},
    "image/timm": {},
    "image/densenet121": {},
    "image/mobilenet_v2": {},
    "image/shufflenet_v2_x0_5": {},
    "image/squeezenet1_1": {},
    "image/swin_t": {},
    "clip/each_frame": OPTIONS["clip/each_frame"],
    "clip/r3d_18": {},
    "clip/s3d": {},
    "clip/swin3d_t": {},
    "clip/transformers": {},
    "molecule/attention": {"dim": 16, "heads": 2},
    "molecule/gine": {"dim": 16},
    "protein/esm": {},
    "text/transformers": {},
}


@pytest.mark.parametrize("key", sorted(MEAN_OF))
def test_the_mean_of_the_tokens_is_y_where_y_is_a_mean(key):
    if key == "image/timm":
        pytest.importorskip("timm")
    encoder = make(key, **MEAN_OF[key])
    view = make_long_view(key)
    x, mask = tokens(encoder, view)
    mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    with torch.no_grad():
        y = encoder(view)
    assert x.shape[2] == encoder.dim and torch.allclose(mean, y, atol=1e-5 * float(y.abs().max()))


def test_what_is_behind_the_mean_gives_y_of_it():
    for key in ("text/transformer", "text/words", "protein/transformer"):
        encoder, view = make(key).eval(), make_long_view(key)
        x, mask = tokens(encoder, view)
        mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        with torch.no_grad():
            assert torch.allclose(encoder.project(mean), encoder(view), atol=1e-5), key


def test_y_is_one_of_the_tokens_where_it_is_a_state_or_a_class_token():
    for key, which in (
        ("clip/conv_gru", -1),
        ("clip/frames_transformer", 0),
        ("image/vit_b_16", 0),
        ("clip/mvit_v2_s", 0),
        ("text/word_gru", -1),
    ):
        encoder, view = make(key).eval(), make_long_view(key) if key == "text/word_gru" else make_view(key)
        x, mask = tokens(encoder, view)
        with torch.no_grad():
            y = encoder(view)
        assert all(torch.allclose(of[kept][which], one, atol=1e-5) for of, kept, one in zip(x, mask, y)), key


def test_a_frame_alone_has_tokens_too():
    encoder = make("clip/frame_and_motion")
    (of_clip, _), (of_frame, _) = (
        tokens(encoder, torch.randn(2, 3, *size)) for size in ((4, 32, 32), (32, 32))
    )
    assert of_frame.shape == (2, 4, 128) and of_clip.shape == (2, 4, 256)


def test_a_librarys_model_stays_what_it_is():
    """Its class is torchvision's and its tensors keep their names; copies have tokens, too."""
    encoder = make("image/resnet18")
    assert isinstance(encoder, torchvision.models.ResNet) and type(encoder).__module__.startswith(
        "torchvision"
    )
    assert type(encoder) is type(make("image/resnet18"))
    whole = torchvision.models.resnet18().state_dict()
    assert set(encoder.state_dict()) == {name for name in whole if not name.startswith("fc.")}
    again, view = copy.deepcopy(encoder), make_view("image/resnet18")
    assert torch.equal(tokens(again, view)[0], tokens(encoder, view)[0])


class Without(torch.nn.Module):
    def forward(self, view):
        return view


class Wrong(TokenEncoder, Without):
    def __init__(self, given):
        super().__init__()
        self.given = given

    def forward_tokens(self, view):
        return self.given


def test_what_is_no_token_is_refused():
    with pytest.raises(
        ValueError, match="encoder Without gives y and no tokens. Use what .* pooled.*, or let"
    ):
        tokens_of(Without(), torch.zeros(2, 3))
    with pytest.raises(
        ValueError, match=r"encoder Wrong: forward_tokens gave \[2, 3\]. Expected tokens \[B,"
    ):
        tokens_of(Wrong(torch.zeros(2, 3)), None)
    with pytest.raises(ValueError, match=r"gave \[2, 3, 4\] and a mask float32 \[2, 3\]. Expected"):
        tokens_of(Wrong((torch.zeros(2, 3, 4), torch.ones(2, 3))), None)
    with pytest.raises(ValueError, match=r"gave 3 tokens on a grid \[2, 2\]. Expected a token for each"):
        tokens_of(Wrong(Tokens(torch.zeros(2, 3, 4), grid=(2, 2))), None)
    with pytest.raises(NotImplementedError, match=r"'TokenEncoder' has no method forward_tokens\(view\)"):
        TokenEncoder().forward_tokens(None)
