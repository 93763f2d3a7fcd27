"""Settings that other programs write into pictures as JSON, translated to the names of the infotext."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from stable_diffusion.request import SAMPLER_LABELS, SCHEDULE_LABELS

from .infotext import Infotext, Pairs, settings_from

Json = Mapping[str, Any]

NAMES = {
    "steps": "Steps",
    "cfg": "CFG scale",
    "cfg_scale": "CFG scale",
    "guidance_scale": "CFG scale",
    "seed": "Seed",
    "noise_seed": "Seed",
    "strength": "Denoising strength",
    "denoise": "Denoising strength",
    "cfg_rescale_multiplier": "CFG rescale",
    "base_model": "Model",
    "sharpness": "Sharpness",
    "adm_guidance": "ADM guidance",
    "styles": "Styles",
}
"""Names in the JSON of InvokeAI, Fooocus and ComfyUI -> names in the infotext."""
SAMPLERS = {"euler_ancestral": "euler_a", "uni_pc": "unipc", "uni_pc_bh2": "unipc"}
"""ComfyUI's samplers whose names are not ours."""

KSAMPLERS = ("KSampler", "KSamplerAdvanced")
MAX_CHAIN = 50
"""Number of nodes of a graph that are followed in a row: links may form a circle."""


def read_json_settings(values: Json) -> Infotext | None:
    """Return settings of InvokeAI or Fooocus; None for JSON of another form."""
    negative = values.get("negative_prompt")
    negative = negative if isinstance(negative, str) else ""
    if isinstance(values.get("positive_prompt"), str):
        scheduler = str(values.get("scheduler"))
        pairs = renamed(values, "steps", "cfg_scale", "seed", "strength", "cfg_rescale_multiplier")
        pairs |= sampling(scheduler.removesuffix("_k"), "karras" if scheduler.endswith("_k") else "normal")
        pairs["Size"] = f"{values.get('width')}x{values.get('height')}"
        if isinstance(model := values.get("model"), Mapping):
            pairs["Model"] = str(model.get("name", model.get("model_name", "")))
        if isinstance(values.get("clip_skip"), int):
            pairs["Clip skip"] = str(values["clip_skip"] + 1)  # counted from 0, as here
        if isinstance(values.get("loras"), list):
            pairs["LoRAs"] = str(len(values["loras"]))
        # Its own syntax for weights, `word++`, is not read.
        return settings_from(values["positive_prompt"], negative, pairs, "plain")
    if isinstance(values.get("prompt"), str) and "sampler" in values and "base_model" in values:
        pairs = renamed(
            values, "steps", "guidance_scale", "seed", "base_model", "sharpness", "adm_guidance", "styles"
        ) | sampling(str(values["sampler"]), str(values.get("scheduler", "normal")))
        if values.get("clip_skip") not in (None, "", []):
            pairs["Clip skip"] = str(values["clip_skip"])
        pairs["Size"] = "x".join(re.findall(r"\d+", str(values.get("resolution"))[:30]))
        pairs |= {key: str(value) for key, value in values.items() if key.startswith("lora")}
        return settings_from(values["prompt"], negative, pairs)
    return None


def read_graph(graph: Json) -> Infotext | None:
    """Return settings of a graph of ComfyUI; None unless exactly one sampler draws from words.

    Among several samplers the one with empty latents counts: the others enlarge its picture.
    """
    samplers = [inputs for kind, inputs in (node_at(graph, [name]) for name in graph) if kind in KSAMPLERS]
    from_noise = [inputs for inputs in samplers if "width" in node_at(graph, inputs.get("latent_image"))[1]]
    if len(from_noise or samplers) != 1:
        return None
    [inputs] = from_noise or samplers
    prompt, negative = (text_at(graph, inputs.get(name)) for name in ("positive", "negative"))
    if prompt is None:
        return None
    pairs = renamed(inputs, "steps", "cfg", "seed", "noise_seed", *(() if from_noise else ("denoise",)))
    pairs |= sampling(str(inputs.get("sampler_name")), str(inputs.get("scheduler")))
    if from_noise:
        latents = node_at(graph, inputs.get("latent_image"))[1]
        pairs["Size"] = f"{latents.get('width')}x{latents.get('height')}"
    if len(samplers) > 1:
        pairs["Further samplers"] = str(len(samplers) - 1)
    tags = ""
    for node in chain(graph, inputs.get("model"), "model"):
        if isinstance(node.get("lora_name"), str):
            tags = f" <lora:{file_stem(node['lora_name'])}:{node.get('strength_model', 1)}>{tags}"
        elif isinstance(node.get("ckpt_name"), str):
            pairs["Model"] = file_stem(node["ckpt_name"])
    for node in chain(graph, inputs.get("positive"), "clip"):
        if isinstance(node.get("stop_at_clip_layer"), int):
            pairs["Clip skip"] = str(-node["stop_at_clip_layer"])
    return settings_from(prompt + tags, negative or "", pairs)


def node_at(graph: Json, link: object) -> tuple[str, Json]:
    """Return class and inputs of the node at a link, [name of the node, number of its output]; empty without one."""
    node = graph.get(str(link[0])) if isinstance(link, list) and link else None
    inputs = node.get("inputs") if isinstance(node, Mapping) else None
    return (str(node.get("class_type")), inputs) if isinstance(inputs, Mapping) else ("", {})  # type: ignore[union-attr]


def chain(graph: Json, link: object, name: str) -> list[Json]:
    """Return the inputs of the nodes from a link on, each linked from the input `name` of the one before."""
    nodes: list[Json] = []
    while len(nodes) < MAX_CHAIN and (inputs := node_at(graph, link)[1]):
        nodes.append(inputs)
        link = inputs.get(name)
    return nodes


def text_at(graph: Json, link: object) -> str | None:
    """Return the text of a CLIPTextEncode node, its own or a text node's; None for other nodes."""
    kind, inputs = node_at(graph, link)
    text = inputs.get("text") if kind == "CLIPTextEncode" else None
    if isinstance(text, list):
        linked = node_at(graph, text)[1]
        text = next((linked[name] for name in ("text", "value", "string") if isinstance(linked.get(name), str)), None)
    return text if isinstance(text, str) else None


def renamed(values: Json, *names: str) -> Pairs:
    """Return the values of these names under the names of the infotext; empty values are left out."""
    return {NAMES[name]: str(values[name]) for name in names if values.get(name) not in (None, "", [])}


def sampling(sampler: str, schedule: str) -> Pairs:
    """Return the pairs of a sampler and a schedule; an unknown name stays as it is."""
    sampler = sampler.removesuffix("_gpu")
    label = SCHEDULE_LABELS.get("model" if schedule == "normal" else schedule, schedule)
    return {"Sampler": SAMPLER_LABELS.get(SAMPLERS.get(sampler, sampler), sampler), "Schedule type": label}


def file_stem(path: str) -> str:
    """Return a file's name without folders, of Windows too, and ending."""
    return re.split(r"[/\\]", path)[-1].rpartition(".")[0] or path
