"""Checkers for the exercises of notebook 08."""

import torch

from flowlib.flow import standard_normal_log_prob


def check_exercise_1(at_scale, shares, vector, flow):
    """A vector at one scale only, and the share of its squared length in each scale."""
    scales = flow.bijection[-1]
    v = torch.arange(1.0, flow.shape.numel() + 1)
    if at_scale(v, 0) is None or shares is None:
        return print("Exercise 1: not answered yet")
    start = 0
    for k, size in enumerate(shape.numel() for shape in scales.shapes):
        alone = at_scale(v, k)
        assert alone.shape == v.shape, (
            f"at_scale should return a vector of shape {tuple(v.shape)} like v, got "
            f"{tuple(alone.shape)}"
        )
        entries = int((alone != 0).sum())
        assert entries == size, (
            f"scale {k} has {size} latents; at_scale(v, {k}) leaves {entries} entries that are "
            "not zero"
        )
        here = v[start : start + size]
        assert torch.equal(alone[start : start + size], here), (
            f"at_scale(v, {k}) keeps {size} entries, but not those of scale {k}"
        )
        start += size
    assert len(shares) == len(scales.shapes), (
        f"one share per scale, {len(scales.shapes)} in all, got {len(shares)}"
    )
    shares = [float(share) for share in shares]
    assert abs(sum(shares) - 1) < 1e-3, (
        f"the shares of the squared length should add up to 1, got {sum(shares):.3f}: squares, "
        "not lengths"
    )
    for k, share in enumerate(shares):
        true = (at_scale(vector, k).square().sum() / vector.square().sum()).item()
        assert abs(share - true) < 1e-3, (
            f"scale {k} has {true:.3f} of the squared length, you gave {share:.3f}"
        )
    print("Exercise 1: passed")


@torch.no_grad()
def check_exercise_2(along, flow, z):
    """Lengths and log-densities along a path of latents."""
    path = torch.stack([z[0], (z[0] + z[1]) / 2])
    answer = along(flow, path)
    if answer is None:
        return print("Exercise 2: not answered yet")
    lengths, log_density = answer
    assert lengths.shape == log_density.shape == (2,), (
        f"two tensors of shape (2,), got {tuple(lengths.shape)} and {tuple(log_density.shape)}"
    )
    expected = path.norm(dim=1) / path.shape[1] ** 0.5
    assert torch.allclose(lengths, expected, atol=1e-4), (
        f"the lengths should be {expected.tolist()}, got {lengths.tolist()}: divide by √D"
    )
    right = standard_normal_log_prob(path) - flow.inverse(path)[1]
    if torch.allclose(log_density, standard_normal_log_prob(path), rtol=1e-4):
        raise AssertionError(
            "that is the base density of the latents; the change of volume is missing"
        )
    if torch.allclose(log_density, 2 * standard_normal_log_prob(path) - right, rtol=1e-4):
        raise AssertionError("inverse returns the log_det of the inverse: mind the sign")
    assert torch.allclose(log_density, right, rtol=1e-4), (
        f"expected {right.tolist()}, got {log_density.tolist()}"
    )
    print("Exercise 2: passed")


def check_exercise_3(cosine, z, has):
    """The smile vectors of two halves of the faces."""
    if cosine is None:
        return print("Exercise 3: not answered yet")
    half = len(z) // 2
    first, second = (
        z[s][has[s]].mean(0) - z[s][~has[s]].mean(0) for s in (slice(half), slice(half, None))
    )
    right = torch.dot(first, second).item() / (first.norm() * second.norm()).item()
    assert -1 <= cosine <= 1, f"a cosine lies between -1 and 1, got {cosine}"
    assert abs(cosine - right) < 1e-3, (
        f"from the first and the second half the checker finds {right:.3f}, you gave {cosine:.3f}"
    )
    print("Exercise 3: passed")
