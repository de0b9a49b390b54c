"""Where models, inputs and outputs lie; the functions that nodes call are those of ComfyUI's module of this name."""

from __future__ import annotations

import os
from pathlib import Path

base_path = os.path.dirname(os.path.realpath(__file__))
models_dir = os.path.join(base_path, "models")
_EXTENSIONS = {".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors", ".pkl", ".sft"}
_LEGACY = {"unet": "diffusion_models", "clip": "text_encoders"}

folder_names_and_paths: dict[str, tuple[list[str], set[str]]] = {
    name: ([os.path.join(models_dir, name)], set(_EXTENSIONS)) for name in sorted(os.listdir(models_dir))
}
folder_names_and_paths["text_encoders"][0].append(os.path.join(models_dir, "clip"))
folder_names_and_paths["diffusion_models"][0].insert(0, os.path.join(models_dir, "unet"))
folder_names_and_paths["custom_nodes"] = ([os.path.join(base_path, "custom_nodes")], set())
for _old in _LEGACY:
    folder_names_and_paths.pop(_old, None)

output_directory = os.path.join(base_path, "output")
temp_directory = os.path.join(base_path, "temp")
input_directory = os.path.join(base_path, "input")
user_directory = os.path.join(base_path, "user")


def set_output_directory(path: str) -> None:
    global output_directory
    output_directory = path


def set_temp_directory(path: str) -> None:
    global temp_directory
    temp_directory = path


def set_input_directory(path: str) -> None:
    global input_directory
    input_directory = path


def set_user_directory(path: str) -> None:
    global user_directory
    user_directory = path


def get_output_directory() -> str:
    return output_directory


def get_temp_directory() -> str:
    return temp_directory


def get_input_directory() -> str:
    return input_directory


def get_user_directory() -> str:
    return user_directory


def get_directory_by_type(name: str) -> str | None:
    return {"output": output_directory, "temp": temp_directory, "input": input_directory}.get(name)


def map_legacy(folder_name: str) -> str:
    return _LEGACY.get(folder_name, folder_name)


def add_model_folder_path(folder_name: str, full_folder_path: str, is_default: bool = False) -> None:
    paths, _ = folder_names_and_paths.setdefault(map_legacy(folder_name), ([], set()))
    if full_folder_path not in paths:
        paths.insert(0 if is_default else len(paths), full_folder_path)


def get_folder_paths(folder_name: str) -> list[str]:
    return list(folder_names_and_paths[map_legacy(folder_name)][0])


def get_filename_list(folder_name: str) -> list[str]:
    paths, extensions = folder_names_and_paths[map_legacy(folder_name)]
    found = set()
    for root in paths:
        for folder, _, names in os.walk(root, followlinks=True):
            found |= {
                os.path.relpath(os.path.join(folder, name), root)
                for name in names
                if Path(name).suffix.lower() in extensions
            }
    return sorted(found)


def get_full_path(folder_name: str, filename: str) -> str | None:
    for root in get_folder_paths(folder_name):
        path = os.path.join(root, os.path.relpath(os.path.join("/", filename), "/"))
        if os.path.isfile(path):
            return path
    return None


def get_full_path_or_raise(folder_name: str, filename: str) -> str:
    path = get_full_path(folder_name, filename)
    if path is None:
        raise FileNotFoundError(f"Model in folder '{folder_name}' with filename '{filename}' not found.")
    return path


def annotated_filepath(name: str) -> tuple[str, str | None]:
    for kind in ("output", "input", "temp"):
        if name.endswith(f"[{kind}]"):
            return name[: -len(kind) - 3], get_directory_by_type(kind)
    return name, None


def get_annotated_filepath(name: str, default_dir: str | None = None) -> str:
    name, base_dir = annotated_filepath(name)
    return os.path.join(base_dir or default_dir or get_input_directory(), name)


def exists_annotated_filepath(name: str) -> bool:
    return os.path.exists(get_annotated_filepath(name))


def get_save_image_path(
    filename_prefix: str, output_dir: str, image_width: int = 0, image_height: int = 0
) -> tuple[str, str, int, str, str]:
    """Folder, file name, next counter, subfolder and prefix; refuses, as ComfyUI does, to leave *output_dir*."""
    prefix = filename_prefix.replace("%width%", str(image_width)).replace("%height%", str(image_height))
    subfolder, filename = os.path.split(os.path.normpath(prefix))
    folder = os.path.join(output_dir, subfolder)
    if os.path.commonpath((output_dir, os.path.abspath(folder))) != output_dir:
        raise Exception(
            f"**** ERROR: Saving image outside the output folder is not allowed.\n full_output_folder: {folder}"
        )
    os.makedirs(folder, exist_ok=True)
    counters = [0]
    for name in os.listdir(folder):
        number = name[len(filename) + 1 :].partition("_")[0]
        if name.startswith(f"{filename}_") and number.isdigit():
            counters.append(int(number))
    return folder, filename, max(counters) + 1, subfolder, filename_prefix
