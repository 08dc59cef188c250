"""Faces drawn from a recipe: soft shapes painted over one another, every attribute known.

There are three systems of coordinates, y pointing down. The picture is the square from -1 to 1. The
head is the unit disc in (u, v): position, tilt and proportions end there. The face (X, Y) is that
disc seen from straight ahead: turning the head slides the features over it, nearer ones farther.
"""

import math
from types import SimpleNamespace

import torch
from torch import Tensor

from ..common import generator, integer, on_cpu, rand

ATTRIBUTES = ("smiling", "glasses", "beard", "long_hair", "bald", "dark_hair", "facing_left")
BLOCK = 32  # faces are always drawn in whole blocks: none depends on how many were asked for


def rgb(*colours):
    """Colours, each three numbers in 0 ... 1, to be broadcast over images: (k, 3, 1, 1)."""
    return torch.tensor(colours, dtype=torch.float32).view(-1, 3, 1, 1)


SKIN = rgb(  # evenly along the tone
    (0.98, 0.86, 0.78), (0.94, 0.76, 0.64), (0.80, 0.59, 0.44), (0.60, 0.41, 0.29),
    (0.40, 0.26, 0.19),
)  # fmt: skip
HAIR = rgb(  # black and dark brown, which make "dark_hair"; brown, red, blond, grey
    (0.11, 0.09, 0.09), (0.25, 0.16, 0.11), (0.44, 0.28, 0.17), (0.64, 0.31, 0.15),
    (0.84, 0.68, 0.44), (0.72, 0.71, 0.70),
)  # fmt: skip
IRIS = rgb((0.30, 0.18, 0.10), (0.42, 0.28, 0.14), (0.36, 0.45, 0.30), (0.32, 0.48, 0.62))


def draw_faces(
    n: int, size: int = 64, seed: int | torch.Generator | None = 0
) -> tuple[Tensor, Tensor]:
    """Draw n faces: images (n, 3, size, size), 0 ... 255, and attributes (n, 7) in {0, 1}, uint8.

    Column j of the attributes says whether ATTRIBUTES[j] holds. Left is the picture's left; the
    hair of the bald is seen in their brows. A seed draws the same people at every size, a multiple
    of 8 from 32 to 128 (else a ValueError); the first k of n faces are those of `draw_faces(k)`.

    >>> images, attributes = draw_faces(36, size=32, seed=1)
    >>> images[attributes[:, ATTRIBUTES.index("smiling")] == 1].shape
    torch.Size([19, 3, 32, 32])
    """
    n = integer("n", n, at_least=0)
    if integer("size", size, at_least=32) > 128 or size % 8:
        raise ValueError(f"size must be a multiple of 8 from 32 to 128, got {size}")
    rng = on_cpu(generator(seed))
    images = torch.empty(n, 3, size, size, dtype=torch.uint8)
    attributes = torch.empty(n, len(ATTRIBUTES), dtype=torch.uint8)
    for start in range(0, n, BLOCK):
        people = invent_people(BLOCK, rng)
        known = torch.stack([getattr(people, name).flatten() for name in ATTRIBUTES], dim=1)
        attributes[start : start + BLOCK] = known[: n - start]
        picture = paint(people, size)
        noise = torch.randn(picture.shape, generator=generator(people.film), dtype=picture.dtype)
        picture = (255 * picture + 2 * noise).round_().clamp_(0, 255)  # a camera has noise, too
        images[start : start + BLOCK] = picture[: n - start]
    return images, attributes


def invent_people(count, rng):
    """All that the painting has to know: numbers (count, 1, 1, 1), colours (count, 3, 1, 1).

    Lengths are in units of the head's half width and half height, angles in radians; a positive
    yaw turns the head to the left. `film` seeds the noise.
    """

    def between(low, high, channels=1):
        return low + (high - low) * rand((count, channels, 1, 1), rng, like=SKIN)

    def one_of(shares):
        shares = torch.tensor(shares, dtype=torch.float32)
        return torch.multinomial(shares, count, replacement=True, generator=rng)

    def colourful(low, high, saturation):
        hue = between(0, 1) + rgb((0, 1 / 3, 2 / 3))
        return between(low, high) + between(0.02, saturation) * torch.cos(2 * math.pi * hue)

    p = SimpleNamespace()
    p.smile = between(-1, 1)
    p.yaw, p.pitch, p.tilt = between(-0.35, 0.35), between(-0.08, 0.08), between(-0.12, 0.12)
    p.centre_x, p.centre_y = between(-0.05, 0.05), between(-0.05, 0.02)
    p.width, p.height, p.jaw = between(0.51, 0.57), between(0.65, 0.72), between(-0.14, 0.12)
    p.eye_apart, p.eye_width = between(0.37, 0.42), between(0.165, 0.195)
    p.eye_open, p.gaze = between(0.075, 0.100), between(-0.03, 0.03)
    p.brow_arch, p.brow_height = between(0.02, 0.07), between(0.20, 0.25)
    p.brow_weight = between(0.018, 0.036)
    p.nose_length, p.nose_width = between(0.25, 0.32), between(0.11, 0.15)
    p.mouth_width, p.lips, p.lipstick = between(0.28, 0.36), between(0.040, 0.070), between(0, 0.6)

    cut = between(0, 1)
    p.bald, p.long_hair = cut < 0.14, cut > 0.55
    p.hair_end = torch.where(p.long_hair, between(0.5, 1.5), between(0.0, 0.15))
    p.hair_sides = torch.where(p.long_hair, between(2.0, 3.5), between(0.6, 0.9))
    p.hairline, p.parting = between(-0.68, -0.42), between(-0.35, 0.35)
    p.volume, p.curl = between(1.08, 1.22), between(0, 1).square()
    p.beard, p.beard_density = (between(0, 1) < 0.4) & ~p.long_hair, between(0.45, 0.90)
    p.glasses, p.lens = between(0, 1) < 0.35, between(0.26, 0.30)
    p.squareness, p.frame = between(0, 1), between(0.02, 0.35, 3)

    tone = between(0, len(SKIN) - 1.001)
    lighter = tone.long().flatten()
    p.skin = SKIN[lighter].lerp(SKIN[lighter + 1], tone.frac()) * between(0.97, 1.03, 3)
    hair, fair = one_of((0.24, 0.22, 0.15, 0.12, 0.16, 0.11)), tone.flatten() <= 2.5
    hair[~fair & ((hair == 3) | (hair == 4))] = 2  # red and blond go with lighter skin
    p.hair, p.iris = HAIR[hair] * between(0.85, 1.15), IRIS[one_of((0.40, 0.25, 0.15, 0.20))]
    p.blush, p.clothes = between(0.05, 0.35), colourful(0.2, 0.75, 0.2)
    p.backdrop, p.backdrop_below = colourful(0.5, 0.85, 0.1), colourful(0.4, 0.8, 0.1)
    p.light = between(0.3, 1) * between(-1, 1).sign()  # from the left (negative) or the right

    p.smiling, p.facing_left, p.dark_hair = p.smile > 0, p.yaw > 0, hair < 2
    p.film = torch.randint(2**62, (1,), generator=rng).item()
    return p


def paint(p, size):
    """People -> images (B, 3, size, size), 0 ... 1 (highlights may exceed it)."""
    axis = (torch.arange(size, dtype=torch.float32) + 0.5) * (2 / size) - 1
    c = Canvas(x=axis.view(1, 1, 1, -1), y=axis.view(1, 1, -1, 1), pixel=2.4 / size, soft=4 / size)
    dx, dy = c.x - p.centre_x, c.y - p.centre_y
    c.v = (dy * p.tilt.cos() - dx * p.tilt.sin()) / p.height
    half_width = p.width * (1 - p.jaw * c.v.clamp(min=0).square())
    c.u = (dx * p.tilt.cos() + dy * p.tilt.sin()) / half_width
    c.bulge = (1 - c.u.square() - c.v.square()).clamp_(min=0)
    c.X, c.Y = c.u * p.yaw.cos() + c.bulge * p.yaw.sin(), c.v + c.bulge * p.pitch
    c.head = ellipse(c.u, c.v, 1, 1, c.soft)
    c.ex, c.ey = c.X.abs() - p.eye_apart, c.Y + 0.02  # seen from an eye, both eyes at once
    c.curls = p.curl * torch.cos(15 * c.u) * torch.cos(11 * c.v + 6 * c.u.square())
    # Back to front; each takes the people and the canvas.
    for part in (scene, behind_the_face, skin, eyes, nose_and_mouth, glasses, hair):
        part(p, c)
    return c.image


class Canvas(SimpleNamespace):
    """The picture so far, `image` (B, 3, H, W), and where its pixels lie, (B, 1, H, W) or alike.

    Edges are ramps a little wider than a pixel: `pixel` in the picture, about `soft` on the head.
    """

    def add(self, opacity, colour):
        self.image.lerp_(colour, opacity)

    def shade(self, opacity):
        """Darken, or lighten if negative; least in red, as skin does."""
        self.image *= 1 - opacity * rgb((0.8, 1.0, 1.1))


def inside(distance, ramp):
    """The opacity of a shape from the signed distance to its edge: 1 inside (negative), else 0."""
    return (0.5 - distance / ramp).clamp_(0, 1)


def ellipse(x, y, width, height, ramp):
    return inside(torch.hypot(x / width, y / height) - 1, ramp / width)


def spot(x, y, width, height):
    """A round blur, 1 in the middle and 0 from the ellipse outwards."""
    return (1 - (x / width).square() - (y / height).square()).clamp_(min=0).square_()


def scene(p, c):
    down = (c.y + 0.4 * p.light * c.x + 1.4) / 2.8
    c.image = torch.lerp(p.backdrop, p.backdrop_below, down) + 0.10 * spot(c.x, c.y, 1.3, 1.3)
    body = ellipse(c.x - p.centre_x / 2, c.y - 1.22, 0.90, 0.50, c.pixel)
    c.add(body, p.clothes * (1 + 0.25 * p.light * c.x - 0.35 * spot(c.x, c.y - 0.75, 0.6, 0.5)))


def behind_the_face(p, c):
    x, y = c.u.abs() - 0.99 - 0.10 * p.yaw * c.u.sign(), c.v - 0.06
    c.add(ellipse(x, y, 0.14, 0.20, c.soft), p.skin * 0.92)
    c.shade(0.30 * spot(x - 0.02, y, 0.10, 0.16))  # ears; now hair
    above, below = (-c.v).clamp(min=0) / p.volume, (c.v - p.hair_end + 0.25).clamp(min=0) / 0.25
    width = 1.03 + 0.4 * (p.volume - 1) + 0.10 * (1 + c.v.clamp(-1, 1)) * p.long_hair
    radius = ((c.u / width).square() + above.square() + below.square()).sqrt()
    hair = inside(radius - 1 + 0.05 * c.curls, c.soft) * ~p.bald
    c.add(hair, p.hair * (0.75 - 0.15 * c.v + 0.05 * c.curls))
    throat = ellipse(c.x - p.centre_x / 2, c.y - 0.45, 0.25, 0.49, c.pixel)
    c.add(throat, p.skin * 0.95)
    c.shade(throat * (0.08 + 0.40 * ellipse(c.u, c.v - 0.12, 1, 1, 0.25)))  # the head's shadow


def skin(p, c):
    c.add(c.head, p.skin)
    lit = 0.75 * c.bulge + 0.35 * p.light * c.u - 0.20 * c.v
    c.shade(c.head * (0.30 - 0.40 * lit).clamp_(-0.10, 0.5))
    c.shade(-0.12 * spot(c.u - 0.3 * p.light, c.v + 0.55, 0.5, 0.35))
    cheeks = spot(c.X.abs() - 0.50, c.Y - 0.30 + 0.05 * p.smile, 0.32, 0.28)
    c.add(c.head * cheeks * p.blush, p.skin * rgb((1.0, 0.66, 0.62)))
    jaw = ellipse(c.u, c.v, 1.02, 1.04, c.soft)  # for the beard
    cheek = inside(0.43 - 0.40 * c.X.square().square() - c.Y, 0.16)
    lit = 1.0 - 0.25 * c.v + 0.15 * p.light * c.u
    c.add(jaw * cheek * p.beard_density * p.beard, p.hair * lit)


def eyes(p, c):
    c.shade(0.16 * spot(c.ex, c.ey + 0.06, 0.30, 0.22))
    lid = p.eye_open * (1 - 0.20 * p.smile.clamp(min=0)) * (1 - (c.ex / p.eye_width).square())
    almond = inside((c.ey + 0.01).abs() - lid, c.soft)
    c.add(almond, rgb((0.95, 0.94, 0.93)))
    x, y = c.ex * c.X.sign() - p.gaze - 0.1 * p.yaw, c.ey * (p.height / p.width)
    c.add(almond * ellipse(x, y, 0.115, 0.115, c.soft), p.iris)
    c.add(almond * ellipse(x, y, 0.055, 0.055, c.soft), rgb((0.06, 0.06, 0.06)))
    glint = ellipse(x - 0.035 * p.light.sign(), y + 0.04, 0.025, 0.025, c.soft)
    c.add(0.9 * glint, rgb((1.0, 1.0, 1.0)))
    c.add(0.8 * inside((c.ey + 0.01 + lid).abs() - 0.014, c.soft) * (lid > 0), p.skin * 0.18)
    along = 1 - (c.ex / 0.24).square()
    off = (c.ey + p.brow_height + p.brow_arch * along - 0.05 * c.ex).abs() - p.brow_weight
    c.add((2.5 * along).clamp(0, 0.85) * inside(off, c.soft), 0.75 * torch.minimum(p.hair, p.skin))


def nose_and_mouth(p, c):
    x, y = c.X + 0.25 * p.yaw, c.Y - p.nose_length
    c.shade(0.20 * spot(x + 0.10 * p.light, y + 0.14, 0.12, 0.36))
    c.shade(0.30 * spot(x, y - 0.05, p.nose_width + 0.05, 0.08))
    c.shade(-0.16 * spot(x - 0.02 * p.light, y + 0.05, 0.09, 0.14))
    c.shade(0.55 * spot(x.abs() - 0.55 * p.nose_width, y - 0.03, 0.065, 0.05))

    x = (c.X + 0.10 * p.yaw) / (p.mouth_width * (1 + 0.18 * p.smile))
    bow = (1 - x.square()).clamp(min=-1)  # 1 in the middle, 0 in the corners
    y = c.Y - 0.56 - (0.06 + 0.04 * p.smile + 0.09 * p.smile.clamp(min=0)) * (bow - 0.6)
    gap, corners = 0.10 * (p.smile - 0.2).clamp(min=0), (4 * bow).clamp(0, 1)
    red = p.lipstick * ~p.beard
    rose = torch.lerp(p.skin * rgb((0.86, 0.62, 0.58)), rgb((0.75, 0.25, 0.28)), red)
    c.shade(0.18 * spot(x, y - 0.14 - gap, 0.8, 0.07))
    lips = torch.maximum(-y - (gap + p.lips) * bow, y - (gap + 1.3 * p.lips) * bow)
    c.add(corners * inside(lips, c.soft), rose)
    c.add(corners * inside(y.abs() - gap * bow - 0.006, c.soft), rose * 0.4)
    teeth = inside((y + 0.2 * gap).abs() - 0.75 * gap * bow, c.soft)
    c.add(corners * teeth * (gap > 0), rgb((0.97, 0.96, 0.93)))


def glasses(p, c):
    x, y = (c.ex / p.lens).square(), ((c.ey - 0.03) / (0.78 * p.lens)).square()
    round_, square = (x + y).sqrt(), (x.square() + y.square()).sqrt().sqrt()
    rim = (torch.lerp(round_, square, p.squareness) - 1) * p.lens
    c.add(0.10 * inside(rim, c.soft) * p.glasses, rgb((1.0, 1.0, 1.0)))
    bar = ((c.ey + 0.05).abs() - 0.012).maximum(-rim).maximum(c.u.abs() - 1)
    c.add(0.9 * inside(torch.minimum(rim.abs() - 0.020, bar), c.soft) * p.glasses, p.frame)


def hair(p, c):
    width = 1 + 0.7 * (p.volume - 1) * (0.2 - c.v).clamp(0, 1)  # close to the head below the ears
    crown = torch.hypot(c.u / width, c.v / p.volume) - 1 + 0.05 * c.curls
    fan = (c.X - p.parting) / (c.Y + 1.8).clamp(min=0.3)  # strands spread out from the crown
    strands = (1 - p.curl) * torch.cos(36 * fan)
    brink = c.Y - p.hairline - p.hair_sides * c.X.square() ** 3 - p.parting * c.X
    brink = brink + 0.10 * c.curls + 0.025 * strands
    c.shade(0.22 * c.head * inside(brink, 0.30) * ~p.bald)  # the hair's shadow
    gloss = 0.90 + 0.30 * spot(c.u - 0.35 * p.light, c.v + 0.72, 0.7, 0.30) + 0.12 * p.light * c.u
    shape = inside(crown, c.soft) * inside(brink, 1.2 * c.soft) * ~p.bald
    c.add(shape, p.hair * (gloss + 0.06 * strands + 0.15 * c.curls))
