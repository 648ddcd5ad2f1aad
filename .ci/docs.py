#!/usr/bin/env python3
"""`nbdev_docs` with five things mended: no link inside a signature's code block, where a reader would see its brackets;
[source] leads to the page's own module when two modules have a thing of that name; a decorated method has its class in its title, and a source; symbols of one cell come in its order; a page that makes a module
says so, and how its cells are run elsewhere.

python .ci/docs.py              the whole site (needs Quarto)
python .ci/docs.py --notebooks  only the processed notebooks in _proc/"""
import sys
from pathlib import Path
import nbdev.processors as processors, nbdev.showdoc as showdoc
from nbdev.config import get_config
from execnb.nbio import mk_cell
from nbdev.doclinks import NbdevLookup, _lineno

def add_links(cell):
    look = NbdevLookup()
    if cell.cell_type == 'markdown': cell.source = look.linkify(cell.source)
    for o in cell.get('outputs', []):
        if text := o.get('data', {}).get('text/markdown'): o['data']['text/markdown'] = [look.linkify(''.join(text))]

class ExecShowDocs(processors.exec_show_docs):
    def begin(self):
        super().begin()
        Renderer.module = next((c.directives_['default_exp'][0] for c in self.nb.cells if 'default_exp' in (getattr(c, 'directives_', None) or {})), None)
        if Renderer.module:
            cfg, page = get_config(), Path(self.nb.path_).resolve().relative_to(get_config().nbs_path.resolve())
            text = f'[This page is the notebook [{page.as_posix()}]({cfg.git_url}/blob/{cfg.branch}/{cfg.nbs_path.name}/{page.as_posix()}), from which the module is made; its imports are not shown. To run a cell elsewhere, begin with <code>from {cfg.lib_name}.{Renderer.module} import \\*</code> and import NumPy as <code>np</code> and what else it names.]{{.origin}}'
            at = 1 + next(i for i, c in enumerate(self.nb.cells) if c.cell_type == 'markdown' and not c.source.startswith('<!--'))
            self.nb.cells.insert(at, mk_cell(text, 'markdown'))

class Renderer(showdoc.BasicMarkdownRenderer):
    def __init__(self, sym, name=None, **kw):
        super().__init__(sym, name=name, **kw)
        if hasattr(sym, '__wrapped__'): self.nm = self.fn = name or sym.__qualname__

    def _repr_markdown_(self):
        look, text = NbdevLookup(), super()._repr_markdown_()
        if not (own := look[f'{get_config().lib_name}.{self.module}.{self.fn}']): return text
        source = f'{own[2]}#L{_lineno(self.fn, own[1])}'
        return text.replace(look.code(self.fn), source, 1)

def in_order(cell, shown, names=processors._def_names): return names(cell, shown)[::-1]   # each is put in right behind the cell, the last one first

processors._def_names = in_order
processors.add_links, processors.exec_show_docs, showdoc.BasicMarkdownRenderer = add_links, ExecShowDocs, Renderer   # here, not below: nbdev's workers import this file

if __name__ == '__main__':
    if '--notebooks' in sys.argv:
        from nbdev.serve import proc_nbs
        proc_nbs(n_workers=2)
    else:
        from nbdev.quarto import nbdev_docs
        nbdev_docs()
