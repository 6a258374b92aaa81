"""What a CLIP model, or the tower that a LLaVA took from it, says of pictures and words."""

import torch


def cls_attention(tower, pixels):
    """[N] float32 array: attention that CLS pays to the patches in the last two feature layers."""
    before = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            out = tower(pixels, output_attentions=True)
    finally:
        tower.set_attn_implementation(before)
    return torch.stack(out.attentions[-2:])[:, 0, :, 0, 1:].mean((0, 1)).numpy()


def same_tower(clip, llava):
    """Whether a CLIPModel has the vision tower of a LLaVA, weight for weight."""
    mine, theirs = clip.vision_model.state_dict(), llava.model.vision_tower.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


def nearest_patch(clip, processor, text, picture):
    """Number of the patch whose feature in CLIP's space is the most like the words."""
    inputs = processor(text=[text], images=[picture], return_tensors="pt", padding=True)
    with torch.no_grad():
        words = clip.get_text_features(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).pooler_output
        vision = clip.vision_model(inputs["pixel_values"], output_hidden_states=True)
        patches = clip.vision_model.post_layernorm(vision.hidden_states[-2][:, 1:])
        alike = torch.cosine_similarity(clip.visual_projection(patches)[0], words)
    return int(alike.argmax())


def told_apart(clip, processor, texts, pictures):
    """Share of the texts whose own picture is the most like them among all."""
    inputs = processor(text=texts, images=pictures, return_tensors="pt", padding=True)
    with torch.no_grad():
        match = clip(**inputs).logits_per_text
    return (match.argmax(-1) == torch.arange(len(texts))).float().mean()
