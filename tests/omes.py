"""The metadata of an OME-TIFF file whose images may lie in several files, as microscopes write them.

# one image, its two channels in two files
metadata("a.ome.tif", (60, 80), [[("a.ome.tif", 0), ("b.ome.tif", 0)]])
"""

OME = """<?xml version="1.0"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{here}">{images}</OME>"""
IMAGE = """<Image ID="Image:{i}"><Pixels ID="Pixels:{i}" DimensionOrder="XYZCT" Type="uint16"
SizeX="{width}" SizeY="{height}" SizeZ="1" SizeC="{channels}" SizeT="1">{planes}</Pixels></Image>"""
PLANE = """<TiffData FirstC="{c}" IFD="{page}" PlaneCount="1">
<UUID FileName="{name}">urn:uuid:{name}</UUID></TiffData>"""


def metadata(here: str, shape: tuple[int, int], images: list[list[tuple[str, int]]]) -> str:
    """here: the file that they stand in. shape: (height, width). images: of each channel of each image the
    file and its page there."""
    height, width = shape
    texts = []
    for i, channels in enumerate(images):
        planes = "".join(PLANE.format(c=c, page=page, name=name) for c, (name, page) in enumerate(channels))
        texts.append(IMAGE.format(i=i, width=width, height=height, channels=len(channels), planes=planes))
    return OME.format(here=here, images="".join(texts))
