"""Writes tests/fixtures/processors.json, what processors make of pictures, and tests/fixtures/pictures.json,
what Pillow reads of files.

    python scripts/fixtures_processors.py

needs `pip install transformers==5.24 pillow`. The expected numbers come from transformers' processors on
Pillow, or on torchvision's arithmetic where there is no other; never from us. The pictures are a formula.
"""

import importlib
import io
import json
import re
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image, ImageOps

OUT = Path(__file__).parent.parent / "tests" / "fixtures" / "processors.json"
PICTURES = OUT.with_name("pictures.json")
SIZES = [(64, 48), (37, 150), (310, 95), (500, 400), (28, 28), (20, 90)]


def picture(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    channels = [(x * (7 + c) // 3 + y * (11 + 2 * c) // 5 + (x * y) // (61 + c)) % 256 for c in range(3)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def runs(text: str) -> list:
    """A text in runs of equal tokens."""
    out = []
    for token in re.findall(r"<[^<>\n]+>|\[[A-Z_]+\]|\n|[^<\[\n]+", text):
        if out and out[-1][0] == token:
            out[-1][1] += 1
        else:
            out.append([token, 1])
    return out


def tensor(values) -> dict:
    if not isinstance(values, np.ndarray):
        values = values.float().numpy() if values.is_floating_point() else values.numpy()
    flat = values.reshape(-1)
    if values.dtype.kind in "iu":
        kept = flat if flat.size <= 64 else flat[:: flat.size // 61]
        return {"shape": list(values.shape), "integers": [int(v) for v in kept], "sum": int(flat.sum())}
    at = np.linspace(0, flat.size - 1, 41).astype(np.int64)
    quantiles = np.quantile(flat.astype(np.float64), np.linspace(0, 1, 17))
    return {
        "shape": list(values.shape),
        "at": at.tolist(),
        "values": [round(float(v), 5) for v in flat[at]],
        "quantiles": [round(float(v), 5) for v in quantiles],
    }


def load(path: str):
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(f"transformers.models.{module}"), name)


def case(name, read, image, expand, *, settings=None, config=None, processor=None, tokens=(), keep=(), sizes=SIZES, levels=0):
    """One processor: `image` is its class, `settings` its preprocessor_config.json, and `expand` makes the
    text of a picture from its tensors. `levels` of 8 bits are how far torchvision's resizing is from Pillow's."""
    settings = settings or {}
    own = load(image)(**settings)
    pictures = []
    for width, height in sizes:
        named = {"return_row_col_info": True} if hasattr(own, "return_row_col_info") else {}
        kind = "np" if image.endswith("Pil") else "pt"
        out = own([picture(width, height)], return_tensors=kind, **named)
        tensors = {key: tensor(out[key]) for key in keep or ("pixel_values",)}
        pictures.append({"size": [width, height], "tensors": tensors, "placeholders": runs(expand(own, out))})
    settings = {**settings, "image_processor_type": type(own).__name__.removesuffix("Pil")}
    return {
        "name": name,
        "read": read,
        "config": config or {},
        "settings": settings,
        "processor": processor or {},
        "tokens": list(tokens),
        "levels": levels,
        "pictures": pictures,
    }


def method(path: str, name: str = "replace_image_token", **fields):
    """A method of a processor with only these fields, as a function of the image processor's output."""

    def expand(own, out):
        cls = load(path)
        self = SimpleNamespace(image_processor=own, **fields)
        for helper in dir(cls):
            if helper.startswith("_") and not helper.startswith("__") and callable(getattr(cls, helper)):
                setattr(self, helper, lambda *a, _h=helper, **k: getattr(cls, _h)(self, *a, **k))
        extra = {"use_image_special_tokens": True} if hasattr(self, "use_image_special_tokens") else {}
        return getattr(cls, name)(self, out, 0, **extra)

    return expand


def cases() -> list[dict]:
    gemma3 = "\n\n<start_of_image>" + "<image_soft_token>" * 16 + "<end_of_image>\n\n"
    gemma3_tokens = ["<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    idefics = dict(
        fake_image_token="<fake_token_around_image>", image_token="<image>", global_image_tag="<global-img>", image_seq_len=5
    )
    idefics_tokens = ["<fake_token_around_image>", "<image>", "<global-img>"] + [
        f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)
    ]
    imagenet = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    square = lambda side: {"height": side, "width": side}
    out = [
        case(
            "one square",
            "fixed::with_crops",
            "gemma3.image_processing_pil_gemma3.Gemma3ImageProcessorPil",
            method("gemma3.processing_gemma3.Gemma3Processor", full_image_sequence=gemma3),
            settings={"size": square(56), "do_pan_and_scan": False},
            processor={"image_seq_length": 16},
            tokens=gemma3_tokens,
        ),
        case(
            "a square and crops",
            "fixed::with_crops",
            "gemma3.image_processing_pil_gemma3.Gemma3ImageProcessorPil",
            method("gemma3.processing_gemma3.Gemma3Processor", full_image_sequence=gemma3),
            settings={
                "size": square(42),
                "do_pan_and_scan": True,
                "pan_and_scan_min_crop_size": 20,
                "pan_and_scan_max_num_crops": 3,
                "pan_and_scan_min_ratio_to_activate": 1.2,
            },
            processor={"image_seq_length": 16},
            tokens=gemma3_tokens,
        ),
        case(
            "a square before the start",
            "fixed::with_start_after",
            "siglip.image_processing_pil_siglip.SiglipImageProcessorPil",
            lambda own, out: "<image>" * 16,
            settings={"size": square(56), "resample": 3, **half, "image_seq_length": 16},
            tokens=["<image>", "<bos>"],
        ),
        case(
            "the centre",
            "fixed::centered",
            "clip.image_processing_pil_clip.CLIPImageProcessorPil",
            method(
                "llava.processing_llava.LlavaProcessor",
                patch_size=14,
                num_additional_image_tokens=1,
                vision_feature_select_strategy="default",
                image_token="<image>",
            ),
            settings={"size": {"shortest_edge": 56}, "crop_size": square(56)},
            processor={"patch_size": 14, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"},
            tokens=["<image>"],
        ),
        case(
            "the centre of a smaller picture",
            "fixed::centered",
            "clip.image_processing_pil_clip.CLIPImageProcessorPil",
            lambda own, out: "<image>" * 26,
            settings={"size": {"shortest_edge": 40}, "crop_size": square(70), "resample": 2},
            processor={"patch_size": 14, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "full"},
            tokens=["<image>"],
        ),
        case(
            "the middle of a square",
            "fixed::squared_and_reduced",
            "llava.image_processing_pil_llava.LlavaImageProcessorPil",
            lambda own, out: "<image>" * 49,
            settings={
                "size": {"shortest_edge": 56},
                "crop_size": square(56),
                "do_pad": True,
                "image_mean": [0.25, 0.5, 0.0],
                "image_std": [0.5, 1.0, 1.0],
            },
            config={"image_aspect_ratio": "pad", "vision_config": {"embed_dims": [8, 16]}},
        ),
        case(
            "canvases",
            "canvas::read",
            "llava_next.image_processing_pil_llava_next.LlavaNextImageProcessorPil",
            method(
                "llava_next.processing_llava_next.LlavaNextProcessor",
                patch_size=14,
                num_additional_image_tokens=1,
                vision_feature_select_strategy="default",
                image_token="<image>",
            ),
            settings={
                "size": {"shortest_edge": 56},
                "crop_size": square(56),
                "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]],
            },
            processor={"patch_size": 14, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"},
            tokens=["<image>"],
            keep=["pixel_values", "image_sizes"],
        ),
        case(
            "named tiles",
            "tiles::named",
            "idefics3.image_processing_pil_idefics3.Idefics3ImageProcessorPil",
            method("idefics3.processing_idefics3.Idefics3Processor", **idefics),
            settings={"size": {"longest_edge": 128}, "max_image_size": {"longest_edge": 42}},
            processor={"image_seq_len": 5},
            tokens=idefics_tokens,
            keep=["pixel_values", "pixel_attention_mask"],
        ),
        case(
            "named tiles that are never cut",
            "tiles::named",
            "idefics3.image_processing_pil_idefics3.Idefics3ImageProcessorPil",
            method("idefics3.processing_idefics3.Idefics3Processor", **idefics),
            settings={
                "size": {"longest_edge": 128},
                "max_image_size": {"longest_edge": 42},
                "do_image_splitting": False,
                "resample": 3,
            },
            processor={"image_seq_len": 5},
            tokens=idefics_tokens,
            keep=["pixel_values", "pixel_attention_mask"],
        ),
        case(
            "rows",
            "rows::read",
            "pixtral.image_processing_pil_pixtral.PixtralImageProcessorPil",
            method(
                "pixtral.processing_pixtral.PixtralProcessor",
                patch_size=14,
                spatial_merge_size=2,
                image_token="[IMG]",
                image_break_token="[IMG_BREAK]",
                image_end_token="[IMG_END]",
            ),
            settings={"size": {"longest_edge": 140}, "patch_size": 28},
            config={"vision_config": {"patch_size": 14}, "spatial_merge_size": 2},
            tokens=["[IMG]", "[IMG_BREAK]", "[IMG_END]"],
            keep=["pixel_values", "image_sizes"],
        ),
    ]
    for name, settings in [
        ("patches that are merged", {"size": {"shortest_edge": 3136, "longest_edge": 50176}}),
        ("patches of 16 pixels", {"patch_size": 16, **half, "min_pixels": 4096, "max_pixels": 30000}),
        ("patches of one frame", {"temporal_patch_size": 1, "size": {"shortest_edge": 784, "longest_edge": 20000}}),
    ]:
        out.append(
            case(
                name,
                "smart_resize::read",
                "qwen2_vl.image_processing_pil_qwen2_vl.Qwen2VLImageProcessorPil",
                method("qwen2_vl.processing_qwen2_vl.Qwen2VLProcessor", image_token="<|image_pad|>"),
                settings=settings,
                tokens=["<|image_pad|>"],
                keep=["pixel_values", "image_grid_thw"],
            )
        )
    out.append(
        case(
            "pictures that count as two frames",
            "smart_resize::doubled",
            "glm4v.image_processing_pil_glm4v.Glm4vImageProcessorPil",
            method("glm4v.processing_glm4v.Glm4vProcessor", image_token="<|image|>"),
            settings={"size": {"shortest_edge": 12544, "longest_edge": 60000}},
            tokens=["<|image|>"],
            keep=["pixel_values", "image_grid_thw"],
        )
    )
    out.append(
        case(
            "patches row by row",
            "blocks::limited",
            "paddleocr_vl.image_processing_pil_paddleocr_vl.PaddleOCRVLImageProcessorPil",
            method("paddleocr_vl.processing_paddleocr_vl.PaddleOCRVLProcessor", image_token="<|IMAGE_PLACEHOLDER|>"),
            settings={"size": {"shortest_edge": 3136, "longest_edge": 40000}},
            tokens=["<|IMAGE_PLACEHOLDER|>"],
            keep=["pixel_values", "image_grid_thw"],
        )
    )
    aya = dict(
        img_size=56,
        patch_size=28,
        start_of_img_token="<|START_OF_IMG|>",
        end_of_img_token="<|END_OF_IMG|>",
        img_patch_token="<|IMG_PATCH|>",
        tile_token="TILE",
        tile_global_token="TILE_GLOBAL",
    )
    out += [
        case(
            "numbered tiles",
            "grids::numbered",
            "got_ocr2.image_processing_pil_got_ocr2.GotOcr2ImageProcessorPil",
            method("aya_vision.processing_aya_vision.AyaVisionProcessor", **aya),
            settings={"size": square(56), "crop_to_patches": True, "max_patches": 6, **half},
            processor={"img_size": 56, "patch_size": 14, "downsample_factor": 2},
            tokens=["<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>"],
        ),
        case(
            "a grid and the whole picture",
            "grids::plain",
            "got_ocr2.image_processing_pil_got_ocr2.GotOcr2ImageProcessorPil",
            method(
                "internvl.processing_internvl.InternVLProcessor",
                start_image_token="<img>",
                end_image_token="</img>",
                image_token="<IMG_CONTEXT>",
                image_seq_length=4,
            ),
            settings={"size": square(56), "crop_to_patches": True, "max_patches": 12},
            processor={"image_seq_length": 4},
            tokens=["<img>", "</img>", "<IMG_CONTEXT>"],
        ),
        case(
            "a grid and the whole picture, by the config of the model",
            "grids::chat",
            "got_ocr2.image_processing_pil_got_ocr2.GotOcr2ImageProcessorPil",
            method(
                "internvl.processing_internvl.InternVLProcessor",
                start_image_token="<img>",
                end_image_token="</img>",
                image_token="<IMG_CONTEXT>",
                image_seq_length=4,
            ),
            settings={"size": square(56), "crop_to_patches": True, "max_patches": 6, **imagenet},
            config={
                "force_image_size": 56,
                "downsample_ratio": 0.5,
                "max_dynamic_patch": 6,
                "vision_config": {"image_size": 448, "patch_size": 14},
            },
            tokens=["<img>", "</img>", "<IMG_CONTEXT>"],
        ),
        case(
            "tiles that end with a line",
            "grids::lined",
            "cohere2_vision.image_processing_cohere2_vision.Cohere2VisionImageProcessor",
            method(
                "cohere2_vision.processing_cohere2_vision.Cohere2VisionProcessor",
                patch_size=2,
                image_token="<|IMG_PATCH|>",
                img_line_break_token="<|IMG_LINE_BREAK|>",
                boi_token="<|START_OF_IMG|>",
                eoi_token="<|END_OF_IMG|>",
            ),
            settings={"size": square(56), "patch_size": 2, "max_patches": 6, **half},
            tokens=["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>"],
            levels=1,
        ),
        case(
            "separated tiles",
            "padded_tiles::separated",
            "llama4.image_processing_llama4.Llama4ImageProcessor",
            method("llama4.processing_llama4.Llama4Processor", patch_size=14, downsample_ratio=4),
            settings={"size": square(56), "max_patches": 6, **half},
            processor={"patch_size": 14, "pixel_shuffle_ratio": 0.5},
            tokens=[
                "<|image|>",
                "<|patch|>",
                "<|image_start|>",
                "<|image_end|>",
                "<|tile_x_separator|>",
                "<|tile_y_separator|>",
            ],
            keep=["pixel_values", "aspect_ratios"],
            levels=2,
        ),
        case(
            "patches in tiles",
            "patches::split",
            "lfm2_vl.image_processing_lfm2_vl.Lfm2VlImageProcessor",
            method(
                "lfm2_vl.processing_lfm2_vl.Lfm2VlProcessor",
                image_token="<image>",
                image_start_token="<|image_start|>",
                image_end_token="<|image_end|>",
                image_thumbnail_token="<|img_thumbnail|>",
                use_image_special_tokens=True,
            ),
            settings={
                "encoder_patch_size": 8,
                "tile_size": 64,
                "min_image_tokens": 4,
                "max_image_tokens": 32,
                "max_tiles": 6,
                **half,
            },
            tokens=["<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"],
            keep=["pixel_values", "pixel_attention_mask", "spatial_shapes"],
            levels=1,
        ),
        case(
            "tiles for cross attention",
            "padded_tiles::crossed",
            "mllama.image_processing_pil_mllama.MllamaImageProcessorPil",
            lambda own, out: "<|image|>",
            settings={"size": square(56), "max_image_tiles": 4, **half},
            tokens=["<|image|>"],
            keep=["pixel_values", "aspect_ratio_ids", "aspect_ratio_mask"],
        ),
        case(
            "tiles that overlap",
            "overlapping::read",
            "molmo2.image_processing_molmo2.Molmo2ImageProcessor",
            method(
                "molmo2.processing_molmo2.Molmo2Processor",
                image_use_col_tokens=True,
                use_single_crop_col_tokens=None,
                use_single_crop_start_token=True,
            ),
            settings={"size": square(56), "patch_size": 8, "overlap_margins": [2, 1], "max_crops": 5},
            tokens=["<im_patch>", "<im_start>", "<im_end>", "<im_col>", "<low_res_im_start>", "<|image|>", "<|endoftext|>"],
            config={"eos_token_id": 8},
            keep=["pixel_values", "image_token_pooling", "image_grids", "image_num_crops"],
        ),
        case(
            "patches within a budget",
            "patches::whole",
            "siglip2.image_processing_pil_siglip2.Siglip2ImageProcessorPil",
            lambda own, out: "<image>" * int(np.prod(out["spatial_shapes"][0])),
            settings={"patch_size": 14, "max_num_patches": 30},
            keep=["pixel_values", "pixel_attention_mask", "spatial_shapes"],
        ),
        case(
            "pooled patches",
            "patches::pooled",
            "gemma4.image_processing_pil_gemma4.Gemma4ImageProcessorPil",
            method(
                "gemma4.processing_gemma4.Gemma4Processor",
                boi_token="<|image>",
                eoi_token="<image|>",
                image_token="<|image|>",
            ),
            settings={"max_soft_tokens": 70, "patch_size": 4},
            tokens=["<|image>", "<image|>", "<|image|>"],
            keep=["pixel_values", "image_position_ids", "num_soft_tokens_per_image"],
        ),
    ]
    return out


def file_of(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def deep_png(width: int, height: int) -> bytes:
    """An RGB picture of 16 bits a channel, which Pillow reads and does not write."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    levels = np.stack([(x * 4001 + y * 1777 + c * 9001) % 65536 for c in range(3)], -1).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in levels)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def files() -> list:
    """Name, file as hexadecimal digits, size, some levels, and how far lossy decoders differ."""
    image = picture(23, 17)
    smooth = image.resize((5, 4), Image.Resampling.BOX).resize((23, 17), Image.Resampling.BICUBIC)
    alpha = image.copy()
    alpha.putalpha(Image.fromarray((np.arange(17 * 23) % 256).astype(np.uint8).reshape(17, 23)))
    out = [
        ("png", file_of(image, "PNG"), 0),
        ("png with alpha", file_of(alpha, "PNG"), 0),
        ("grey png", file_of(image.convert("L"), "PNG"), 0),
        ("grey png with alpha", file_of(alpha.convert("LA"), "PNG"), 0),
        ("png of one bit", file_of(image.convert("1"), "PNG"), 0),
        ("png with a palette", file_of(image.quantize(16), "PNG"), 0),
        ("png with a transparent palette", file_of(image.quantize(16), "PNG", transparency=3), 0),
        ("grey png of 16 bits", file_of(Image.fromarray((np.asarray(image.convert("L")).astype(np.uint16) * 251 + 77)), "PNG"), 0),
        ("png of 16 bits", deep_png(23, 17), 0),
        ("gif", file_of(image.quantize(64), "GIF"), 0),
        ("gif of two frames", file_of(image.quantize(64), "GIF", save_all=True, append_images=[image.rotate(90).quantize(64)]), 0),
        ("webp", file_of(image, "WEBP", lossless=True), 0),
        ("webp with alpha", file_of(alpha, "WEBP", lossless=True, exact=True), 0),
        ("lossy webp", file_of(smooth, "WEBP", quality=90), 3),
        ("jpeg", file_of(smooth, "JPEG", quality=95), 3),
        ("progressive jpeg", file_of(smooth, "JPEG", quality=95, progressive=True), 3),
        ("jpeg without subsampling", file_of(smooth, "JPEG", quality=95, subsampling=0), 2),
        ("grey jpeg", file_of(smooth.convert("L"), "JPEG", quality=95), 2),
        ("cmyk jpeg", file_of(smooth.convert("CMYK"), "JPEG", quality=95), 3),
    ]
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        out.append((f"jpeg with orientation {orientation}", file_of(smooth, "JPEG", quality=95, subsampling=0, exif=exif), 2))
        out.append((f"png with orientation {orientation}", file_of(image, "PNG", exif=exif), 0))
    rows = []
    for name, data, tolerance in out:
        read = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        levels = np.asarray(read).reshape(-1)
        rows.append([name, data.hex(), list(read.size), levels[:: -(-levels.size // 60)].tolist(), tolerance])
    return rows


if __name__ == "__main__":
    lines = [json.dumps(it, separators=(",", ":")) for it in files()]
    PICTURES.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    lines = [json.dumps(it, separators=(",", ":")) for it in cases()]
    OUT.write_text('{"reference": "transformers 5.24 on Pillow 13", "cases": [\n' + ",\n".join(lines) + "\n]}\n")
    print(f"{OUT.name}: {len(lines)} cases, {OUT.stat().st_size / 1024:.0f} KB")
