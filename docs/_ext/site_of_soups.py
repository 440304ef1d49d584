"""Join the parts of the site: pages of the reference, docstrings, notebooks, and links from code in a text to them."""

import pathlib
import re

import docstrings
import notebooks
import public_names
import reference_pages
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.domains.python import PyObject
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

logger = logging.getLogger(__name__)


class LinkNames(SphinxTransform):
    """Make a link of code in a text that names something public, such as `soups.greedy` or `soups.Pool.add(...)`.

    Code that names what is not there, public or not, is a warning.
    """

    default_priority = 500

    def apply(self, **_):
        """Wrap each such code in a reference."""
        for literal in list(self.document.findall(nodes.literal)):
            named = re.match(r"(soups(?:\.\w+)+)(\(.*\))?$", literal.astext(), re.DOTALL)
            if not named or isinstance(literal.parent, nodes.reference | pending_xref):
                continue
            if path := public_names.resolve(named[1]):
                link = pending_xref(refdomain="py", reftype="obj", reftarget=path, refexplicit=True, refwarn=True)
                link["refdoc"] = self.env.docname
                literal.replace_self(link)
                link += literal
            elif not public_names.is_there(named[1]):
                logger.warning("there is no %s", named[1], location=literal)


def list_pages(app, name, source):
    """List below the front page the notebooks, and pages that it does not name, in the place of its mark."""
    if name != "index":
        return
    named = set(re.findall(r"^(?:.*<)?([\w/]+)>?$", source[0], re.MULTILINE))
    pages = sorted(page for page in app.env.found_docs - named - {name} if not page.startswith("api/soups"))
    notebooks = [page for page in pages if page.startswith("notebooks/")]
    lists = {"Notebooks": notebooks, "More": [page for page in pages if page not in notebooks]}
    head = "```{{toctree}}\n:caption: {}\n:hidden:\n\n{}\n```"
    blocks = (head.format(title, "\n".join(found)) for title, found in lists.items() if found)
    source[0] = source[0].replace("<!-- pages -->", "\n\n".join(blocks))


def setup(app):
    """Register all of it."""
    app.add_source_suffix(".ipynb", "ipynb")
    app.add_source_parser(notebooks.NotebookParser)
    app.add_transform(LinkNames)
    app.connect("builder-inited", lambda app: reference_pages.write_pages(pathlib.Path(app.srcdir, "api")))
    app.connect("autodoc-process-docstring", docstrings.convert)
    app.connect("autodoc-process-signature", docstrings.tidy)
    app.connect("source-read", list_pages)
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"  # as the docstrings say
    return {"parallel_read_safe": True, "parallel_write_safe": True}
