"""A small optical flow estimator for the compact size."""

from torch import Tensor, nn

from vsvsr.ops import flow_correction, grey_pyramid, lucas_kanade

_WIDTH = 16


class LightFlow(nn.Module):
    """Coarse-to-fine flow: in each level Lucas-Kanade steps on grey pictures, then a learned correction.

    Like SPyNet, ``flow(p)`` says that pixel ``p`` of the reference lies in the support image at ``p + flow(p)``. The
    three 3x3 convolutions are shared by all levels; about 4,500 multiply-accumulates per pixel, a seventieth of
    SPyNet's. A new network corrects nothing: what is left is plain pyramidal Lucas-Kanade.

    Args:
        levels: pyramid levels; the finest has the size of the frame.
    """

    def __init__(self, levels: int = 5) -> None:
        super().__init__()
        self.levels = levels
        self.correction = nn.Sequential(
            nn.Conv2d(5, _WIDTH, 3, padding=1),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(_WIDTH, 2, 3, padding=1),
        )
        for parameter in self.correction[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, reference: Tensor, support: Tensor) -> Tensor:
        """RGB in [0, 1], both ``(n, 3, h, w)``, to the flow ``(n, 2, h, w)`` fp32 in pixels, horizontal first."""
        height, width = reference.shape[-2:]
        return self.pyramid(reference, support)[-1][..., :height, :width]

    def pyramid(self, reference: Tensor, support: Tensor) -> list[Tensor]:
        """The flow of each level, coarsest first, in pixels of that level."""
        flows: list[Tensor] = []
        for ref, supp in grey_pyramid(reference, support, self.levels):
            flow = lucas_kanade(ref, supp, flows[-1] if flows else None)
            # The finest level costs more than all others together and has little left to find.
            if len(flows) < self.levels - 1:
                flow = lucas_kanade(ref, supp, flow)
            flows.append(flow_correction(ref, supp, flow, self.correction))
        return flows
