"""What other programs write into pictures as JSON, in the words of the infotext, as far as it is plain to read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from stable_diffusion.request import SAMPLER_LABELS, SCHEDULE_LABELS

from .infotext import Pairs, settings_from

Json = Mapping[str, Any]

SAMPLERS = {"euler_ancestral": "euler_a", "uni_pc": "unipc", "uni_pc_bh2": "unipc"}
"""ComfyUI's names where they are not ours."""

INVOKEAI = {
    "steps": "Steps",
    "cfg_scale": "CFG scale",
    "seed": "Seed",
    "strength": "Denoising strength",
    "cfg_rescale_multiplier": "CFG rescale",
}
FOOOCUS = {
    "steps": "Steps",
    "guidance_scale": "CFG scale",
    "seed": "Seed",
    "clip_skip": "Clip skip",
    "base_model": "Model",
    "sharpness": "Sharpness",
    "adm_guidance": "ADM guidance",
    "styles": "Styles",
}
"""Names of these programs -> names of the infotext."""

KSAMPLERS = ("KSampler", "KSamplerAdvanced")
MAX_LINKS = 50
"""How many nodes of a graph are followed in a row: it may lead round in a circle."""


def read_json_settings(values: Json) -> dict[str, Any] | None:
    """Settings of InvokeAI and Fooocus; None where they are neither's."""
    if isinstance(values.get("positive_prompt"), str):
        pairs = _renamed(values, INVOKEAI)
        model = values.get("model")
        if isinstance(model, Mapping):
            pairs["Model"] = str(model.get("name", model.get("model_name", "")))
        if isinstance(values.get("clip_skip"), int):
            pairs["Clip skip"] = str(values["clip_skip"] + 1)  # counted from 0, as here
        if isinstance(values.get("loras"), list):
            pairs["LoRAs"] = str(len(values["loras"]))
        pairs["Size"] = f"{values.get('width')}x{values.get('height')}"
        scheduler = str(values.get("scheduler"))
        pairs |= _sampling(scheduler.removesuffix("_k"), "karras" if scheduler.endswith("_k") else "normal")
        # Its own way to weigh words, `word++`, is not read.
        return settings_from(values["positive_prompt"], _text(values.get("negative_prompt")), pairs, "plain")
    if isinstance(values.get("prompt"), str) and "sampler" in values and "base_model" in values:
        pairs = _renamed(values, FOOOCUS) | _sampling(str(values["sampler"]), str(values.get("scheduler", "normal")))
        pairs["Size"] = "x".join(re.findall(r"\d+", str(values.get("resolution"))[:30]))
        pairs |= {key: str(value) for key, value in values.items() if key.startswith("lora")}
        return settings_from(values["prompt"], _text(values.get("negative_prompt")), pairs)
    return None


def read_graph(graph: Json) -> dict[str, Any] | None:
    """Settings of a graph of ComfyUI's; None where it has not one sampler that draws words from noise.

    Of several samplers the one that begins with empty latents counts: the others enlarge its picture.
    """
    found = [_node(graph, [name])[1] for name in graph if _node(graph, [name])[0] in KSAMPLERS]
    first = [inputs for inputs in found if "width" in _node(graph, inputs.get("latent_image"))[1]]
    if len(first or found) != 1:
        return None
    [inputs] = first or found
    words = {name: _words(graph, inputs.get(name)) for name in ("positive", "negative")}
    if words["positive"] is None:
        return None
    pairs = _renamed(inputs, {"steps": "Steps", "cfg": "CFG scale", "seed": "Seed", "noise_seed": "Seed"})
    pairs |= _sampling(str(inputs.get("sampler_name")), str(inputs.get("scheduler")))
    latents = _node(graph, inputs.get("latent_image"))[1]
    if first:
        pairs["Size"] = f"{latents.get('width')}x{latents.get('height')}"
    else:
        pairs |= _renamed(inputs, {"denoise": "Denoising strength"})
    if len(found) > 1:
        pairs["Further samplers"] = str(len(found) - 1)
    tags = ""
    for node in _chain(graph, inputs.get("model"), "model"):
        if isinstance(node.get("lora_name"), str):
            tags = f" <lora:{_stem(node['lora_name'])}:{node.get('strength_model', 1)}>{tags}"
        elif isinstance(node.get("ckpt_name"), str):
            pairs["Model"] = _stem(node["ckpt_name"])
    for node in _chain(graph, inputs.get("positive"), "clip"):
        if isinstance(node.get("stop_at_clip_layer"), int):
            pairs["Clip skip"] = str(-node["stop_at_clip_layer"])
    return settings_from(words["positive"] + tags, words["negative"] or "", pairs)


def _node(graph: Json, link: Any) -> tuple[str, Json]:
    """Class and inputs of the node that a link, [its name, which of its outputs], leads to; nothing where to none."""
    node = graph.get(str(link[0])) if isinstance(link, list) and link else None
    inputs = node.get("inputs") if isinstance(node, Mapping) else None
    return (str(node.get("class_type")), inputs) if isinstance(inputs, Mapping) else ("", {})  # type: ignore[union-attr]


def _chain(graph: Json, link: Any, name: str) -> list[Json]:
    """The inputs of the nodes from a link on, each the one that the input of that name comes from."""
    chain: list[Json] = []
    while len(chain) < MAX_LINKS and (inputs := _node(graph, link)[1]):
        chain.append(inputs)
        link = inputs.get(name)
    return chain


def _words(graph: Json, link: Any) -> str | None:
    """The text that a CLIPTextEncode node is given, by itself or by a node that holds a text; None for all else."""
    kind, inputs = _node(graph, link)
    value = inputs.get("text") if kind == "CLIPTextEncode" else None
    if isinstance(value, list):
        held = _node(graph, value)[1]
        value = next((held[name] for name in ("text", "value", "string") if isinstance(held.get(name), str)), None)
    return value if isinstance(value, str) else None


def _renamed(values: Json, names: Mapping[str, str]) -> Pairs:
    return {new: str(values[old]) for old, new in names.items() if values.get(old) not in (None, "", [])}


def _sampling(sampler: str, schedule: str) -> Pairs:
    """Sampler and schedule as the infotext has them; a name that is not known stays as it is."""
    sampler = sampler.removesuffix("_gpu")
    name = SAMPLERS.get(sampler, sampler)
    label = SCHEDULE_LABELS.get("model" if schedule == "normal" else schedule, schedule)
    return {"Sampler": SAMPLER_LABELS.get(name, sampler), "Schedule type": label}


def _stem(file: str) -> str:
    """A file's name without folders, of either system, and ending."""
    return re.split(r"[/\\]", file)[-1].rpartition(".")[0] or file


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
