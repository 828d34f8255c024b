"""The pooler by which open_clip's adapter reads texts out of the text tower."""

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling


class DiffclipTextPooler(nn.Module):
    """Return ``pooler_output``, the state at each end-of-text token, (B, C).

    open_clip's ``ClsPooler`` returns it too. Behind that one, though, the adapter copies all other tokens by a mask:
    work for nothing, a wait for the device, and a break in torch.compile's graph
    (open_clip@v3.3.0:src/open_clip/hf_model.py, HFTextEncoder.forward).
    """

    def forward(self, output: BaseModelOutputWithPooling, attention_mask: Tensor) -> Tensor:
        assert output.pooler_output is not None
        return output.pooler_output
