"""The answers to the questions above the sliders, kept here so that no cell gives them away."""

ANSWERS = {
    "00": "No. The first layer only shifts and scales. After it each layer moves the points along "
    "one axis, up and down or left and right, in turns, so a point goes round corners.",
    "02 layers": "On opposite sides, left and right. Nothing in the loss asks for a short way: it "
    "looks only at where points end and at how volumes changed.",
    "02 training": "Early, well before the loss comes to rest. The curve alone could not have told "
    "you: it measures how well the whole density fits.",
    "02 latent": "At the crossing from moon to moon, near z₂ = −0.3: about a hundredfold. Its "
    "other axis is shorter than elsewhere on the walk, a few thousandths: the bridge is a thread.",
    "03": "Direction and length can change, the area cannot: the log-det of NICE is one constant, "
    "so an ellipse that gets longer gets thinner.",
    "05": "The 7 loses its stem and is a 2 from about the middle on, and so on both paths.",
    "06": "You see the digit whose coarse latents, those of scale 2, were taken: the other one. At "
    "temperature 0 the first image stays readable: for a digit, the fine latents hold little that "
    "the neighbours of a pixel do not say already.",
    "07": "Both, and by far more than a quarter; at 0.5 little is left but a plain surface. Each "
    "coupling sees latents that are too short already, so the effect grows from layer to layer.",
    "08 faces": "In the middle, at t = 0.5. The straight face is the smoother one there, like a "
    "sample at a lower temperature; the spherical one has the contrast of a sample.",
    "08 manifold": "At 180° and 180° the two minus signs cancel, and you are back at the first "
    "face. At 180° and 0° the latent is −z₁: as likely under the base density as z₁, and nobody's "
    "face.",
    "08 attributes": "No. The temperature multiplies the latents of the face before the vector is "
    "added, so the rest becomes calmer and the vector keeps its full strength.",
    "09": "From each quarter of the contrast to the next it falls. Plain grey is not free: the "
    "flow leaves some room around every prediction, and pays for it at every value.",
    "10": "At |sin x| = σ/√2, about 0.11. The flows get there later, if at all: they keep two "
    "humps where the truth has one. They are worse at x = 0 than where the islands are far apart.",
    "12": "At temperature 0 exactly one, for every latent is 0. At temperature 1 not every picture "
    "is what was ordered: the flow also believes in shapes between two digits.",
}
