"""Totals of whole clusters as their makers publish them: so many chips make that much."""

import pytest

from sim.hardware.chip import Cluster
from sim.inputs.document import read_value
from sim.inputs.names import catalogue_names

AWS = "https://awsdocs-neuron.readthedocs-hosted.com/en/latest/about-neuron/arch/neuron-hardware/trn3-arch.html"
NVL72 = "https://verda.com/blog/gb300-nvl72-architecture"
AMD = "https://docs.vultr.com/inference-cookbook/rocm/getting-started/hardware-requirements"
PRESS = "https://winbuzzer.com/2025/04/20/huawei-cloudmatrix-384-ai-cluster-outperforms-nvidia-gb200-xcxwbn/"


@pytest.mark.parametrize(
    ("name", "precision", "flops", "bandwidth", "source"),
    [
        ("trn3-gen1", "fp8", 161e15, 314e12, AWS),
        ("trn3-gen2", "fp8", 362e15, 706e12, AWS),
        ("gb300-nvl72", "fp4", 1080e15, 576e12, NVL72),
        ("mi325x-node", "fp16", 10.5e15, 48e12, AMD),
        # The press has 780 TFLOP/s a package and Huawei 752.
        ("cloudmatrix-384", None, None, 1229e12, PRESS),
    ],
)
def test_chips_add_up_to_the_published_cluster(name, precision, flops, bandwidth, source):
    cluster = read_value(catalogue_names("clusters")[name], Cluster)
    fastest = next(iter(cluster.chip.memory.values())).bandwidth
    assert cluster.chips * fastest == pytest.approx(bandwidth, rel=0.005), source
    if precision:
        rate = getattr(cluster.chip.compute, precision)
        assert cluster.chips * rate == pytest.approx(flops, rel=0.005), source
