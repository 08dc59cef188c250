"""Faces drawn from a recipe: soft shapes painted over one another, back to front, with every attribute known.

Three systems of coordinates are in use, all with y pointing down. The picture is the square from -1 to 1. The head is a
unit disc (u, v), so that pose and proportions are behind us once (u, v) is known. The face (X, Y) is the same disc seen
straight from the front: turning the head slides (X, Y) over it, the nose more than the cheeks.
"""

import math
from types import SimpleNamespace

import torch

from ..common import generator, whole_number

__all__ = ["ATTRIBUTES", "draw_faces"]

ATTRIBUTES = ("smiling", "glasses", "beard", "long_hair", "bald", "dark_hair", "facing_left")
BLOCK = 64  # faces are drawn by the block, and a block is always drawn whole: face k does not depend on how many follow

SKIN = ((0.98, 0.86, 0.78), (0.94, 0.76, 0.64), (0.80, 0.59, 0.44), (0.60, 0.41, 0.29), (0.40, 0.26, 0.19))  # from tone 0 to 1
HAIR = ((0.11, 0.09, 0.09), (0.25, 0.16, 0.11), (0.44, 0.28, 0.17), (0.66, 0.31, 0.14), (0.88, 0.71, 0.42), (0.72, 0.71, 0.70))
HAIR_SHARES = (0.28, 0.24, 0.14, 0.11, 0.13, 0.10)  # black, dark brown (these two are "dark"), brown, red, blond, grey
IRIS = ((0.30, 0.18, 0.10), (0.42, 0.28, 0.14), (0.36, 0.45, 0.30), (0.32, 0.48, 0.62))  # two browns, green, blue


def draw_faces(n, size=64, seed=0):
    """Draw n faces: images (n, 3, size, size), uint8 in 0 ... 255, and their attributes (n, 7), uint8 in {0, 1}.

    Column j of the attributes says whether ATTRIBUTES[j] holds; left is the picture's left. The same seed draws the same
    people at every size (a multiple of 8 from 32 to 128), and the first k of n faces are those of `draw_faces(k)`.

    >>> images, attributes = draw_faces(36, seed=1)
    """
    n = whole_number("n", n, at_least=0)
    if whole_number("size", size, at_least=32) > 128 or size % 8:
        raise ValueError(f"size must be a multiple of 8 from 32 to 128, got {size}")
    rng = generator(seed)
    images = torch.empty(n, 3, size, size, dtype=torch.uint8)
    attributes = torch.empty(n, len(ATTRIBUTES), dtype=torch.uint8)
    for start in range(0, n, BLOCK):
        people = invent_people(BLOCK, rng)
        photos = photograph(paint(people, size), people.film)
        known = torch.stack([getattr(people, name).flatten() for name in ATTRIBUTES], dim=1)
        images[start : start + BLOCK] = photos[: n - start]
        attributes[start : start + BLOCK] = known[: n - start]
    return images, attributes


def invent_people(count, rng):
    """All that the painting needs to know: numbers (count, 1, 1, 1), colours (count, 3, 1, 1) and the seed of the noise."""

    def between(low, high, channels=1):
        return low + (high - low) * torch.rand(count, channels, 1, 1, generator=rng)

    def chance(probability):
        return between(0, 1) < probability

    def one_of(colours, shares):
        choice = torch.multinomial(torch.tensor(shares), count, replacement=True, generator=rng)
        return choice.view(-1, 1, 1, 1), torch.tensor(colours)[choice].view(-1, 3, 1, 1)

    def cheerful(low, high):
        wheel = torch.tensor([0, 1 / 3, 2 / 3]).view(1, 3, 1, 1)
        return between(low, high) + between(0.04, 0.20) * torch.cos(2 * math.pi * (between(0, 1) + wheel))

    p = SimpleNamespace(smile=between(-1, 1), yaw=between(-0.42, 0.42), pitch=between(-0.08, 0.08), tilt=between(-0.12, 0.12))
    p.centre_x, p.centre_y = between(-0.05, 0.05), between(-0.07, 0.01)
    p.width, p.height, p.jaw = between(0.47, 0.54), between(0.64, 0.71), between(-0.05, 0.20)
    p.eye_apart, p.eye_width, p.eye_open, p.gaze = between(0.37, 0.42), between(0.15, 0.18), between(0.060, 0.095), between(-0.04, 0.04)
    p.brow_arch, p.brow_height, p.brow_weight = between(0.02, 0.07), between(-0.23, -0.18), between(0.018, 0.036)
    p.nose_length, p.nose_width = between(0.27, 0.33), between(0.10, 0.15)
    p.mouth_width, p.lips = between(0.24, 0.32), between(0.035, 0.060)
    p.light = torch.where(chance(0.5), -1.0, 1.0) * between(0.3, 1)

    tone = between(0, len(SKIN) - 1.001)
    below, skins = tone.long().flatten(), torch.tensor(SKIN).view(-1, 3, 1, 1)
    p.skin = torch.lerp(skins[below], skins[below + 1], tone.frac()) * between(0.97, 1.03, 3)
    p.blush, p.lipstick = between(0.05, 0.35), between(0, 0.7)
    which, p.hair = one_of(HAIR, HAIR_SHARES)
    p.hair = p.hair * between(0.85, 1.15)
    p.iris = one_of(IRIS, (0.4, 0.25, 0.15, 0.2))[1]
    p.clothes, p.backdrop, p.backdrop_below = cheerful(0.2, 0.75), cheerful(0.45, 0.85), cheerful(0.35, 0.75)

    cut = between(0, 1)
    p.bald, p.long_hair = cut < 0.15, cut > 0.55
    p.hair_end = torch.where(p.long_hair, between(0.45, 0.95), between(-0.20, 0.0))
    p.hairline, p.parting = between(-0.62, -0.42), between(-0.25, 0.25)
    p.sides, p.volume = torch.where(p.long_hair, between(1.6, 2.6), between(0.7, 1.1)), between(1.06, 1.15)
    p.beard, p.stubble = chance(0.4) & ~p.long_hair, between(0.45, 0.95)
    p.glasses, p.lens, p.squareness, p.frame = chance(0.35), between(0.24, 0.29), between(0, 0.8), between(0.02, 0.45, 3)
    p.smiling, p.facing_left, p.dark_hair = p.smile > 0, p.yaw < 0, which < 2
    p.film = torch.randint(2**62, (1,), generator=rng).item()
    return p


class Canvas(SimpleNamespace):
    """The picture so far, `image` (B, 3, H, W), and where its pixels lie: x, y (1, 1, H, W); u, v, X, Y (B, 1, H, W)."""

    def add(self, opacity, colour):
        self.image.lerp_(colour, opacity)

    def shade(self, opacity, tint=(0.80, 1.0, 1.1)):
        """Darken; a little less so in red, as light does that comes through skin."""
        self.image *= 1 - opacity * torch.tensor(tint).view(1, 3, 1, 1)


def inside(distance, soft):
    """The opacity of a shape from the signed distance to its edge: 1 inside (negative), 0 outside, a ramp `soft` wide."""
    return (0.5 - distance / soft).clamp_(0, 1)


def spot(x, y, width, height):
    """A soft round spot, 1 in the middle and 0 from the ellipse outwards."""
    return (1 - (x / width).square() - (y / height).square()).clamp_(min=0).square_()


def ellipse(x, y, width, height, soft):
    return inside(((x / width).square() + (y / height).square()).sqrt() - 1, soft / width)


def paint(p, size):
    """People -> images (B, 3, size, size) in 0 ... 1."""
    axis = (torch.arange(size) + 0.5) * (2 / size) - 1
    c = Canvas(x=axis.view(1, 1, 1, -1), y=axis.view(1, 1, -1, 1), pixel=2.4 / size)
    dx, dy = c.x - p.centre_x, c.y - p.centre_y
    c.v = (dy * p.tilt.cos() - dx * p.tilt.sin()) / p.height
    c.u = (dx * p.tilt.cos() + dy * p.tilt.sin()) / (p.width * (1 - p.jaw * c.v.clamp(min=0).square()))
    bulge = (1 - c.u.square() - c.v.square()).clamp_(min=0)
    c.X, c.Y = c.u * p.yaw.cos() + bulge * p.yaw.sin(), c.v + bulge * p.pitch
    c.bulge, c.head = bulge, ellipse(c.u, c.v, 1, 1, c.pixel / 0.55)
    c.side = c.X.sign()
    c.ex, c.ey = c.X.abs() - p.eye_apart, c.Y + 0.02
    for part in (backdrop, clothes, ears, hair_behind, neck, skin, beard, eyes, brows, nose, mouth, hair_in_front, glasses):
        part(p, c)
    return c.image


def backdrop(p, c):
    c.image = torch.lerp(p.backdrop, p.backdrop_below, (c.y + 0.4 * p.light * c.x + 1.4) / 2.8)
    c.image += 0.10 * spot(c.x, c.y, 1.3, 1.3)


def clothes(p, c):
    body = ellipse(c.x - p.centre_x / 2, c.y - 1.22, 0.88, 0.52, c.pixel)
    c.add(body, p.clothes * (1 - 0.25 * p.light * c.x))


def neck(p, c):
    x = c.x - p.centre_x / 2
    c.add(ellipse(x, c.y - 0.45, 0.27, 0.52, c.pixel), p.skin * 0.95)
    c.shade(0.30 * spot(c.u, c.v - 0.45, 0.8, 1.0))


def ears(p, c):
    ear = ellipse(c.u.abs() - 0.99 - 0.10 * p.yaw * c.u.sign(), c.v - 0.06, 0.14, 0.20, c.pixel / 0.55)
    c.add(ear, p.skin * 0.88)


def hair_behind(p, c):
    above, below = (-c.v).clamp(min=0), (c.v - p.hair_end + 0.25).clamp(min=0) / 0.25
    wide = 1.05 + 0.25 * (p.volume - 1) + 0.14 * p.long_hair * c.v.clamp(-0.2, 1)
    shape = ((c.u / wide).square() + (above / p.volume).square() + below.square()).sqrt() - 1
    c.add(inside(shape, c.pixel / 0.55) * ~p.bald, p.hair * (0.75 - 0.15 * c.v))


def skin(p, c):
    c.add(c.head, p.skin)
    lit = 0.75 * c.bulge + 0.35 * p.light * c.u - 0.20 * c.v
    c.shade(c.head * (0.30 - 0.40 * lit).clamp_(-0.10, 0.5))
    cheek = spot(c.X.abs() - 0.48, c.Y - 0.30 + 0.05 * p.smile, 0.32, 0.28)
    c.add(c.head * cheek * p.blush, p.skin * torch.tensor([1.0, 0.66, 0.62]).view(1, 3, 1, 1))


def eyes(p, c):
    c.shade(0.16 * spot(c.ex, c.ey + 0.06, 0.30, 0.20))
    opened = p.eye_open * (1 - 0.18 * p.smile.clamp(min=0))
    lid = 1 - (c.ex / p.eye_width).square()
    almond = inside((c.ey + 0.01).abs() - opened * lid, c.pixel / 0.6)
    c.add(almond, torch.tensor([0.96, 0.95, 0.94]).view(1, 3, 1, 1))
    ix, iy = c.ex * c.side - p.gaze - 0.1 * p.yaw, (c.ey + 0.015) * (p.height / p.width)
    c.add(almond * ellipse(ix, iy, 0.085, 0.085, c.pixel / 0.5), p.iris)
    c.add(almond * ellipse(ix, iy, 0.042, 0.042, c.pixel / 0.5), torch.tensor(0.06))
    c.add(0.9 * ellipse(ix - 0.03 * p.light.sign(), iy + 0.03, 0.022, 0.022, c.pixel / 0.5), torch.tensor(1.0))
    edge = (c.ey + 0.01 + opened * lid).abs() - 0.012
    c.add(0.8 * inside(edge, c.pixel / 0.6) * (lid > 0), p.skin * 0.18)


def brows(p, c):
    along = 1 - ((c.ex - 0.01) / 0.22).square()
    line = c.ey - p.brow_height + p.brow_arch * along + 0.03 * p.smile.clamp(max=0) * c.ex.sign()
    c.add(0.85 * inside(line.abs() - p.brow_weight * along.clamp(-1, 1), c.pixel / 0.6), 0.75 * torch.minimum(p.hair, p.skin))


def nose(p, c):
    x, y = c.X + 0.25 * p.yaw, c.Y - p.nose_length
    c.shade(0.14 * spot(x + 0.09 * p.light, y + 0.12, 0.10, 0.32))
    c.shade(0.22 * spot(x, y - 0.05, p.nose_width + 0.04, 0.07))
    c.shade(-0.14 * spot(x - 0.02 * p.light, y + 0.03, 0.09, 0.10))
    c.shade(0.5 * spot(x.abs() - 0.55 * p.nose_width, y - 0.025, 0.055, 0.045))


def mouth(p, c):
    x = (c.X + 0.10 * p.yaw) / (p.mouth_width * (1 + 0.18 * p.smile))
    bow = 1 - x.square()
    curve = torch.where(p.smile > 0, 0.11, 0.05) * p.smile
    y = c.Y - 0.55 - curve * (bow - 0.6)
    gap = 0.07 * (p.smile - 0.25).clamp(min=0)
    lens = bow.clamp(-1, 1)
    rose = torch.lerp(p.skin * torch.tensor([0.86, 0.62, 0.58]).view(1, 3, 1, 1), torch.tensor([0.75, 0.22, 0.26]).view(1, 3, 1, 1), p.lipstick)
    c.shade(0.18 * spot(x, y - 0.13 - gap, 0.8, 0.06))
    c.add(inside(torch.maximum(-y - (gap + p.lips) * lens, y - (gap + 1.3 * p.lips) * lens), c.pixel / 0.65), rose)
    inner = inside(y.abs() - (gap * lens + 0.006), c.pixel / 0.65) * (bow > 0)
    c.add(inner, rose * 0.35)
    c.add(inside((y + 0.2 * gap).abs() - 0.75 * gap * lens, c.pixel / 0.65) * (gap > 0), torch.tensor([0.97, 0.96, 0.93]).view(1, 3, 1, 1))


def beard(p, c):
    edge = 0.40 - 0.42 * c.X.square() - c.Y
    jaw = ellipse(c.u, c.v, 1.04, 1.05, c.pixel / 0.55)
    c.add(jaw * inside(edge, 0.14) * p.stubble * p.beard, p.hair * (0.95 - 0.25 * c.v))


def hair_in_front(p, c):
    crown = ((c.u / (0.5 + 0.5 * p.volume)).square() + (c.v / p.volume).square()).sqrt() - 1
    line = c.Y - p.hairline - p.sides * c.X.square().square() - p.parting * c.X
    c.shade(0.22 * c.head * inside(line, 0.30) * ~p.bald)
    gloss = spot(c.u - 0.35 * p.light, c.v + 0.72, 0.7, 0.25)
    strands = torch.cos(22 * c.X + 6 * c.Y)
    shine = 0.90 + 0.30 * gloss + 0.05 * strands + 0.12 * p.light * c.u
    c.add(inside(crown, c.pixel / 0.55) * inside(line, 1.6 * c.pixel) * ~p.bald, p.hair * shine)


def glasses(p, c):
    x, y = (c.ex / p.lens).square(), ((c.ey - 0.02) / (0.78 * p.lens)).square()
    rim = ((x + y - p.squareness * x * y).clamp(min=0).sqrt() - 1) * p.lens
    c.add(0.10 * inside(rim, c.pixel) * p.glasses, torch.tensor(1.0))
    bar = torch.maximum((c.ey + 0.05).abs() - 0.012, -rim) + 10 * (c.u.abs() > 1)
    c.add(0.9 * inside(torch.minimum(rim.abs() - 0.016, bar), c.pixel / 0.55) * p.glasses, p.frame)


def photograph(image, seed):
    """Images in 0 ... 1 -> uint8, with the noise of a camera: two grey levels of it."""
    noise = torch.randn(image.shape, generator=generator(seed))
    return (255 * image + 2 * noise).round_().clamp_(0, 255).byte()
