"""The font designs that `glyphs` and `glyph_scenes` draw with, by split.

All come from Debian packages. Designs that share outlines are in one split, so
that a model is tested on shapes that it has not seen. The packages state these
licences: OFL 1.1 or Apache 2.0 for most; the IPA licence for IPA fonts and
MigMix; the Arphic licence for the Arphic fonts and BabelStone Han; Taiwan's
open data licence for CNS 11643; GPL with the font exception for WenQuanYi,
Baekmuk, Un and cwTeX; free licences of their own for the others.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path

from PIL import ImageFont

from vmoe_study.data.builders import MissingDataError

FONTS = Path("/usr/share/fonts")


@dataclasses.dataclass(frozen=True)
class Design:
  """One face of a font file.

  Attributes:
    package: the Debian package that installs it.
    file: path below the folder of fonts.
    face: number of the face in a font collection.
  """

  package: str
  file: str
  face: int = 0

  def load(self, folder: Path, size: int) -> ImageFont.FreeTypeFont:
    """Opens the design at `size` pixels per em."""
    basic = ImageFont.Layout.BASIC
    path = str(folder / self.file)
    return ImageFont.truetype(path, size, self.face, layout_engine=basic)


Designs = Mapping[str, tuple[Design, ...]]  # By split.


def _table(lines: str) -> tuple[Design, ...]:
  """Designs from lines of package, folder, and file or file:face,face."""
  found = []
  for line in lines.strip().splitlines():
    package, folder, *files = line.split()
    for item in files:
      file, _, faces = item.partition(":")
      for face in (faces or "0").split(","):
        path = f"{folder}/{file}"
        found.append(Design(f"fonts-{package}", path, int(face)))
  return tuple(found)


def check_installed(folder: Path, designs: Designs) -> None:
  """Raises MissingDataError that names the packages of missing files."""
  used = itertools.chain.from_iterable(designs.values())
  missing = [design for design in used if not (folder / design.file).exists()]
  if missing:
    packages = " ".join(sorted({design.package for design in missing}))
    raise MissingDataError(
      f"{folder / missing[0].file}: {len(missing)} font designs are missing, "
      "this one first. They come with\n"
      f"  apt-get install --no-install-recommends {packages}"
    )


# Faces of the Noto collections: 0 is Japanese, 1 Korean, 2 simplified and 3
# traditional Chinese.
HAN = {
  "train": _table("""
    noto-cjk-extra opentype/noto NotoSansCJK-Thin.ttc NotoSansCJK-Light.ttc:2
    noto-cjk opentype/noto NotoSansCJK-Regular.ttc:0,3 NotoSansCJK-Bold.ttc:2
    noto-cjk-extra opentype/noto NotoSansCJK-Medium.ttc:3 NotoSansCJK-Black.ttc
    noto-cjk opentype/noto NotoSerifCJK-Regular.ttc:2 NotoSerifCJK-Bold.ttc
    noto-cjk-extra opentype/noto NotoSerifCJK-ExtraLight.ttc
    noto-cjk-extra opentype/noto NotoSerifCJK-Light.ttc:2
    noto-cjk-extra opentype/noto NotoSerifCJK-Medium.ttc:3
    noto-cjk-extra opentype/noto NotoSerifCJK-Black.ttc:3
    ipafont-gothic opentype/ipafont-gothic ipag.ttf
    ipafont-mincho opentype/ipafont-mincho ipam.ttf
    ipamj-mincho truetype/ipamj ipamjm.ttf
    migmix truetype/migmix migmix-1m-bold.ttf
    horai-umefont truetype/horai-umefont ume-hgo4.ttf ume-tgo5.ttf ume-tmo3.ttf
    arphic-uming truetype/arphic uming.ttc:0,2
    arphic-bsmi00lp truetype/arphic-bsmi00lp bsmi00lp.ttf
    arphic-gbsn00lp truetype/arphic-gbsn00lp gbsn00lp.ttf
    arphic-ukai truetype/arphic ukai.ttc:0,2
    arphic-bkai00mp truetype/arphic-bkai00mp bkai00mp.ttf
    arphic-gkai00mp truetype/arphic-gkai00mp gkai00mp.ttf
    babelstone-han truetype/babelstone BabelStoneHan.ttf
    wqy-zenhei truetype/wqy wqy-zenhei.ttc
    wqy-microhei truetype/wqy wqy-microhei.ttc
    lxgw-wenkai truetype/lxgw-wenkai LXGWWenKai-Light.ttf LXGWWenKai-Bold.ttf
    kouzan-mouhitsu truetype/kouzan-mouhitsu kouzan-mouhitsu.ttf
    aoyagi-soseki truetype/aoyagi-soseki aoyagi-soseki.ttf
    kiloji truetype/kiloji kiloji.ttf kiloji_b.ttf
    yozvox-yozfont truetype/yozvox-yozfont YOzRN_.ttf YOzBN_.ttf YOzRN_i.ttf
    cns11643-sung truetype/cns11643 TW-Sung-98_1.ttf
    motoya-l-cedar truetype/motoya-l-cedar MTLc3m.ttf
    reggae truetype/reggae ReggaeOne-Regular.ttf
    dotgothic16 truetype/dotgothic16 DotGothic16-Regular.ttf
    rampart truetype/rampart RampartOne-Regular.ttf
    vlgothic truetype/vlgothic VL-Gothic-Regular.ttf
  """),
  "val": _table("""
    klee truetype/klee KleeOne-Regular.ttf KleeOne-SemiBold.ttf
    seto truetype/seto setofont.ttf
    rocknroll truetype/rocknroll RocknRollOne-Regular.ttf
    cns11643-kai truetype/cns11643 TW-Kai-98_1.ttf
    mona truetype/mona mona.ttf
    konatu truetype/konatu Konatu.ttf
  """),
  "test": _table("""
    morisawa-bizud-gothic truetype/bizud-gothic BIZUDGothic-Regular.ttf
    morisawa-bizud-gothic truetype/bizud-gothic BIZUDGothic-Bold.ttf
    morisawa-bizud-mincho truetype/bizud-mincho BIZUDMincho-Regular.ttf
    smiley-sans truetype/smiley-sans SmileySans-Oblique.ttf
    stick truetype/stick Stick-Regular.ttf
    hanazono truetype/hanazono HanaMinA.ttf
    cwtex-kai truetype/cwtex cwkai.ttf
    motoya-l-maruberi truetype/motoya-l-maruberi MTLmr3m.ttf
  """),
}

KANA = {
  "train": _table("""
    noto-cjk opentype/noto NotoSansCJK-Regular.ttc NotoSansCJK-Bold.ttc
    noto-cjk opentype/noto NotoSerifCJK-Regular.ttc NotoSerifCJK-Bold.ttc
    ipafont-gothic opentype/ipafont-gothic ipag.ttf
    ipafont-mincho opentype/ipafont-mincho ipam.ttf
    horai-umefont truetype/horai-umefont ume-hgo4.ttf ume-tgo5.ttf ume-tmo3.ttf
    aoyagi-soseki truetype/aoyagi-soseki aoyagi-soseki.ttf
    kouzan-mouhitsu truetype/kouzan-mouhitsu kouzan-mouhitsu.ttf
    motoya-l-cedar truetype/motoya-l-cedar MTLc3m.ttf
    lxgw-wenkai truetype/lxgw-wenkai LXGWWenKai-Light.ttf LXGWWenKai-Bold.ttf
    reggae truetype/reggae ReggaeOne-Regular.ttf
    konatu truetype/konatu Konatu.ttf
    seto truetype/seto setofont.ttf
  """),
  "test": _table("""
    yozvox-yozfont truetype/yozvox-yozfont YOzRN_.ttf YOzBN_.ttf YOzRN_i.ttf
    yozvox-yozfont truetype/yozvox-yozfont YOzRA_.ttf YOzBA_.ttf YOzRA_i.ttf
    yozvox-yozfont truetype/yozvox-yozfont YOzRC_.ttf YOzBC_.ttf YOzRC_i.ttf
    yozvox-yozfont truetype/yozvox-yozfont YOzRE_.ttf YOzBE_.ttf YOzRS_.ttf
    kiloji truetype/kiloji kiloji.ttf kiloji_b.ttf
    klee truetype/klee KleeOne-Regular.ttf KleeOne-SemiBold.ttf
    morisawa-bizud-gothic truetype/bizud-gothic BIZUDGothic-Regular.ttf
    morisawa-bizud-gothic truetype/bizud-gothic BIZUDGothic-Bold.ttf
    morisawa-bizud-mincho truetype/bizud-mincho BIZUDMincho-Regular.ttf
    motoya-l-maruberi truetype/motoya-l-maruberi MTLmr3m.ttf
    rocknroll truetype/rocknroll RocknRollOne-Regular.ttf
    stick truetype/stick Stick-Regular.ttf
    rampart truetype/rampart RampartOne-Regular.ttf
  """),
}

HANGUL = {
  "train": _table("""
    noto-cjk opentype/noto NotoSansCJK-Regular.ttc:1 NotoSansCJK-Bold.ttc:1
    noto-cjk opentype/noto NotoSerifCJK-Regular.ttc:1 NotoSerifCJK-Bold.ttc:1
    nanum truetype/nanum NanumGothic.ttf
    nanum-extra truetype/nanum NanumGothicExtraBold.ttf
    nanum truetype/nanum NanumMyeongjo.ttf
    nanum-extra truetype/nanum NanumMyeongjoExtraBold.ttf
    nanum-extra truetype/nanum NanumBrush.ttf NanumPen.ttf NanumBarunpenR.ttf
    nanum-extra truetype/nanum NanumSquareL.ttf NanumSquareRoundEB.ttf
    baekmuk truetype/baekmuk batang.ttf dotum.ttf gulim.ttf hline.ttf
  """),
  "test": _table("""
    unfonts-core truetype/unfonts-core UnBatang.ttf UnBatangBold.ttf
    unfonts-core truetype/unfonts-core UnDinaru.ttf UnDotum.ttf UnDotumBold.ttf
    unfonts-core truetype/unfonts-core UnGraphic.ttf UnGungseo.ttf UnPilgi.ttf
    unfonts-extra truetype/unfonts-extra UnJamoBatang.ttf UnJamoDotum.ttf
    unfonts-extra truetype/unfonts-extra UnJamoSora.ttf UnPen.ttf UnTaza.ttf
    unfonts-extra truetype/unfonts-extra UnPenheulim.ttf UnShinmun.ttf
    unfonts-extra truetype/unfonts-extra UnVada.ttf UnYetgul.ttf
    woowa-bm truetype/woowa-bm BMDOHYEON_ttf.ttf BMHANNAAir_ttf.ttf
    woowa-bm truetype/woowa-bm BMJUA_ttf.ttf BMKIRANGHAERANG-TTF.ttf
    woowa-bm truetype/woowa-bm BMYEONSUNG_ttf.ttf BMEULJIROTTF.ttf
    lexi-gulim truetype/lexi LexiGulim.ttf
  """),
}
