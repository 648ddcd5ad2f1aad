#!/usr/bin/env python3
"""Run notebooks top to bottom and store what they show: python .ci/refresh.py nbs/00_core.ipynb …  (all of them when none is named)

Cells with a test flag (`#| slow`, `#| gpu`, `#| data`) or `#| eval: false` keep the outputs they have, unless the flag is named: --flags "slow data".
Stops at the first error with its traceback and then leaves that notebook as it was. Pictures are stored as small PNG files."""
import argparse, base64, io, os, re, sys, time
from pathlib import Path

os.environ.setdefault('MPLBACKEND', 'module://matplotlib_inline.backend_inline')
os.environ['TQDM_DISABLE'] = '1'
import numpy as np
from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell
from nbdev.clean import clean_nb
from nbdev.config import get_config
from PIL import Image
from scipy.ndimage import uniform_filter

ROOT = Path(__file__).resolve().parent.parent

def skipped(cell, flags):
    s = cell.source
    directives = set(re.findall(r'^#\s*\|\s*([\w-]+)', s, re.M))
    return bool(re.search(r'^#\s*\|\s*eval:\s*false', s, re.M)) or bool(directives & set(get_config().tst_flags.split()) - flags)

def _close(img, data, overall=39, worst=8):
    "Whether an encoded picture is like its original on the whole (PSNR in dB) and in every window of 5×5 pixels (root mean square, of 255): no line loses its colour, and the steps of a ramp stay small."
    err = np.square(np.asarray(img, float) - np.asarray(Image.open(io.BytesIO(data)).convert('RGB'), float)).mean(2)
    return err.mean() <= 255**2/10**(overall/10) and uniform_filter(err, 5).max() <= worst**2

def smaller_picture(data):
    "The same picture as a PNG of as few colours as the eye takes for the original."
    img = Image.open(io.BytesIO(data)).convert('RGB')
    for n in (16, 24, 32, 48, 64, 96, 128, 192, 256):
        b = io.BytesIO(); img.quantize(n, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=0).save(b, 'PNG', optimize=True)
        if _close(img, b.getvalue()): break
    return min(b.getvalue(), data, key=len)

def lighten(cell):
    "Small pictures; and no plain text where the same stands beside it as a table or a figure."
    for o in cell.get('outputs', []):
        if {'text/markdown', 'text/html', 'image/png'} & set(o.get('data', {})): o['data'].pop('text/plain', None)
        if png := o.get('data', {}).get('image/png'):
            o['data']['image/png'] = base64.b64encode(smaller_picture(base64.b64decode(''.join(png)))).decode() + '\n'

def refresh(path, flags):
    nb, start = read_nb(path), time.time()
    old = {c.id: c.get('outputs', []) for c in nb.cells if c.cell_type == 'code'}
    keep = {c.id for c in nb.cells if c.cell_type == 'code' and skipped(c, flags)}
    for c in nb.cells:
        if c.cell_type == 'code': c.outputs = []
    here = os.getcwd(); os.chdir(path.parent)
    try:
        shell = CaptureShell(path.parent, mpl_format='png')
        shell.run_cell("import matplotlib.pyplot as _p; _p.rcParams.update({'figure.dpi': 80, 'savefig.dpi': 80}); del _p")
        shell.run_all(nb, exc_stop=True, preproc=lambda c: c.cell_type == 'code' and c.id in keep)
    finally: os.chdir(here)
    for c in nb.cells:
        if c.cell_type == 'code' and c.id in keep: c.outputs = old[c.id]
        elif c.cell_type == 'code': lighten(c)
    clean_nb(nb)
    write_nb(nb, path)
    print(f'{path.relative_to(ROOT)}: {time.time() - start:.1f} s', flush=True)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('notebooks', nargs='*', type=Path); p.add_argument('--flags', default='')
    a = p.parse_args()
    paths = a.notebooks or sorted(q for q in (ROOT/'nbs').rglob('*.ipynb') if not q.name.startswith('_') and '.ipynb_checkpoints' not in q.parts)
    sys.path.insert(0, str(ROOT))
    for q in paths:
        if len(paths) > 1:   # a process each: no state leaks from one page to the next
            import subprocess
            if subprocess.run([sys.executable, __file__, str(q), '--flags', a.flags]).returncode: sys.exit(f'{q} failed')
        else: refresh(q.resolve(), set(a.flags.split()))
