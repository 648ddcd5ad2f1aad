#!/usr/bin/env python3
"""Write README.md from nbs/index.ipynb, as `nbdev_readme` does, but without Quarto: prose, visible code and text results; links lead to the site, pictures to nbs/images, callouts become block quotes."""
import json, re, sys
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).resolve().parent.parent
cfg = ConfigParser(delimiters=['=']); cfg.read(root/'settings.ini', encoding='utf-8')
site = cfg['DEFAULT']['doc_host'] + cfg['DEFAULT']['doc_baseurl']

def callout(m):
    title, text = m[1], m[2].strip('\n').split('\n')
    return '\n'.join(f'> {l}'.rstrip() for l in (f'**{title}**', '', *text))

def prose(s):
    s = re.sub(r'^::: \{\.callout-\w+ title="([^"]*)"\}\n(.*?)^:::$', callout, s, flags=re.M | re.S)
    s = re.sub(r'<div class="pipeline-strip">.*?<img src="([^"#]+)[^"]*" alt="([^"]*)">.*?</div>', r'![\2](\1)', s, flags=re.S)
    s = re.sub(r'\]\(images/', '](nbs/images/', s)
    return re.sub(r'\]\(((?:\w+/)*)(?:\d+_)?(\w+)\.ipynb(#[\w.-]+)?\)', lambda m: f"]({site}/{m[1]}{m[2]}.html{m[3] or ''})", s)

def code(cell):
    s = ''.join(cell['source'])
    if re.search(r'^#\s*\|\s*(hide|default_exp)', s, re.M): return ''
    shown = re.sub(r'^#\s*\|.*\n?', '', s, flags=re.M).strip('\n')
    texts = [''.join(o.get('text') or o.get('data', {}).get('text/markdown') or o.get('data', {}).get('text/plain') or '').rstrip() for o in cell['outputs'] if not any(k.startswith('image/') for k in o.get('data', {}))]
    quiet = re.search(r'^#\s*\|\s*echo:\s*false', s, re.M)
    out = [] if quiet else [f'```python\n{shown}\n```']
    return '\n\n'.join(out + [t if 'text/markdown' in str(cell['outputs']) else '\n'.join('    ' + l for l in t.split('\n')) for t in texts if t])

def page(nb):
    parts = [prose(''.join(c['source'])) if c['cell_type'] == 'markdown' else code(c) for c in nb['cells']]
    return '<!-- made from nbs/index.ipynb by .ci/readme.py: edit the notebook -->\n\n' + '\n\n'.join(p.strip('\n') for p in parts if p.strip()) + '\n'

if __name__ == '__main__':
    (root/'README.md').write_text(page(json.loads((root/'nbs'/'index.ipynb').read_text(encoding='utf-8'))), encoding='utf-8', newline='\n')
