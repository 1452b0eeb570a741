//! The subset of XML that NVIDIA's manifests are written in, and its canonical form (Canonical XML
//! 1.1, W3C 2008), which their signatures are over.
//!
//! An own reader, because nothing else is strict enough: a general one accepts many spellings of a
//! document, each a way to change bytes that no signature notices. Here an element has its
//! attributes one space apart in double quotes; there are no declarations, comments, processing
//! instructions, CDATA sections, entities, carriage returns or `xml:` attributes, a prefix is bound
//! once, and what is left needs no rewriting to be canonical but to order attributes, expand empty
//! elements and drop what is bound already.

use thiserror::Error;

/// Why text is not of the subset.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("at byte {offset} there is not {expected}")]
pub struct XmlError {
    /// Where.
    pub offset: usize,
    /// What stands there in the subset.
    pub expected: &'static str,
}

/// An element.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Element<'a> {
    /// As written, with its prefix.
    pub(super) name: &'a str,
    /// In the order of the text, namespaces among them.
    pub(super) attributes: Vec<(&'a str, &'a str)>,
    pub(super) children: Vec<Node<'a>>,
}

/// What an element has inside.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Node<'a> {
    Element(Element<'a>),
    Text(&'a str),
}

/// Reads a document: one element, and at most two line feeds after it.
pub(super) fn parse(text: &str) -> Result<Element<'_>, XmlError> {
    let mut parser = Parser { text, offset: 0, prefixes: Vec::new() };
    let root = parser.element(0)?;
    match parser.rest() {
        "" | "\n" | "\n\n" => Ok(root),
        _ => Err(parser.error("the end of the document")),
    }
}

impl<'a> Element<'a> {
    /// An attribute's value.
    pub(super) fn attribute(&self, name: &str) -> Option<&'a str> {
        self.attributes.iter().find(|(found, _)| *found == name).map(|(_, value)| *value)
    }

    /// The elements inside, without the space between them; nothing else may stand there.
    pub(super) fn elements(&self) -> Option<Vec<&Self>> {
        let elements = self.children.iter().filter_map(|node| match node {
            Node::Element(element) => Some(Some(element)),
            Node::Text(text) if text.trim_matches([' ', '\n']).is_empty() => None,
            Node::Text(_) => Some(None),
        });
        elements.collect()
    }

    /// The elements inside, where there is nothing else, not even space.
    pub(super) fn elements_only(&self) -> Option<Vec<&Self>> {
        let elements = self.children.iter().map(|node| match node {
            Node::Element(element) => Some(element),
            Node::Text(_) => None,
        });
        elements.collect()
    }

    /// The text inside, where there is nothing else.
    pub(super) fn text(&self) -> Option<&'a str> {
        match self.children.as_slice() {
            [Node::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// The canonical form of this element without its own children named `without`, whatever is
    /// further in; `around` are the elements that it stands in, outermost first.
    pub(super) fn canonical(&self, around: &[&Self], without: Option<&str>) -> String {
        let mut bound = Vec::new();
        for element in around {
            bound.extend(element.attributes.iter().copied().filter(|(name, _)| is_binding(name)));
        }
        let own = self.attributes.iter().copied();
        let scope: Vec<_> =
            bound.iter().copied().chain(own.filter(|(n, _)| is_binding(n))).collect();
        let mut out = String::new();
        self.write(&bound, &scope, without, &mut out);
        out
    }

    /// `bindings` are written on this element, `scope` is what is bound inside it.
    fn write(
        &self,
        bindings: &[(&str, &str)],
        scope: &[(&str, &str)],
        without: Option<&str>,
        out: &mut String,
    ) {
        let mut namespaces: Vec<(&str, &str)> = bindings.to_vec();
        namespaces.extend(self.attributes.iter().filter(|(name, _)| is_binding(name)));
        namespaces.sort_unstable_by_key(|(name, _)| name.strip_prefix("xmlns:").unwrap_or(""));
        // "sorted with namespace URI as the primary key and local name as the secondary key".
        let mut attributes: Vec<_> =
            self.attributes.iter().filter(|(name, _)| !is_binding(name)).collect();
        attributes.sort_unstable_by_key(|(name, _)| match name.split_once(':') {
            None => ("", *name),
            Some((prefix, local)) => (lookup(scope, prefix), local),
        });
        out.push('<');
        out.push_str(self.name);
        for (name, value) in namespaces.iter().chain(attributes) {
            for part in [" ", name, "=\"", value, "\""] {
                out.push_str(part);
            }
        }
        out.push('>');
        for child in &self.children {
            match child {
                Node::Text(text) => out.push_str(text),
                Node::Element(element) if without == Some(element.name) => {}
                Node::Element(element) => {
                    let mut inner = scope.to_vec();
                    inner.extend(element.attributes.iter().filter(|(n, _)| is_binding(n)));
                    element.write(&[], &inner, None, out);
                }
            }
        }
        for part in ["</", self.name, ">"] {
            out.push_str(part);
        }
    }
}

fn is_binding(name: &str) -> bool {
    name == "xmlns" || name.starts_with("xmlns:")
}

fn lookup<'a>(scope: &[(&str, &'a str)], prefix: &str) -> &'a str {
    let bound = scope.iter().find(|(name, _)| name.strip_prefix("xmlns:") == Some(prefix));
    bound.map_or("", |(_, uri)| *uri)
}

struct Parser<'a> {
    text: &'a str,
    offset: usize,
    /// Names of the bindings so far: a prefix means one thing in all of a document.
    prefixes: Vec<&'a str>,
}

impl<'a> Parser<'a> {
    const fn error(&self, expected: &'static str) -> XmlError {
        XmlError { offset: self.offset, expected }
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.offset..).unwrap_or_default()
    }

    fn skip(&mut self, len: usize) {
        self.offset = self.offset.saturating_add(len);
    }

    fn take(&mut self, what: &str) -> bool {
        let there = self.rest().starts_with(what);
        if there {
            self.skip(what.len());
        }
        there
    }

    /// The longest front of the rest whose characters all fit.
    fn run(&mut self, fits: fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let len = rest.find(|c| !fits(c)).unwrap_or(rest.len());
        self.skip(len);
        rest.get(..len).unwrap_or_default()
    }

    fn name(&mut self) -> Result<&'a str, XmlError> {
        let at = self.offset;
        let name = self.run(|c| c.is_ascii_alphanumeric() || c == ':');
        let plain = |part: &str| part.starts_with(|c: char| c.is_ascii_alphabetic());
        let whole = match name.split_once(':') {
            None => plain(name),
            Some((prefix, local)) => plain(prefix) && plain(local) && !local.contains(':'),
        };
        if whole && !name.starts_with("xml:") {
            return Ok(name);
        }
        Err(XmlError { offset: at, expected: "a name" })
    }

    fn element(&mut self, depth: usize) -> Result<Element<'a>, XmlError> {
        if depth > DEPTH_MAX || !self.take("<") {
            return Err(self.error("an element, eight deep at most"));
        }
        let name = self.name()?;
        let mut attributes: Vec<(&str, &str)> = Vec::new();
        while self.take(" ") {
            let attribute = self.attribute()?;
            if attributes.iter().any(|(found, _)| *found == attribute.0) {
                return Err(self.error("an attribute that is not there already"));
            }
            attributes.push(attribute);
        }
        let mut children = Vec::new();
        if self.take("/>") {
            return Ok(Element { name, attributes, children });
        }
        if !self.take(">") {
            return Err(self.error("an attribute, `>` or `/>`"));
        }
        while !self.take("</") {
            let text = self.run(|c| c == '\n' || (!c.is_control() && !"<>&".contains(c)));
            if text.is_empty() {
                children.push(Node::Element(self.element(depth.saturating_add(1))?));
            } else {
                children.push(Node::Text(text));
            }
        }
        // An element with nothing in it is written in the short form.
        if children.is_empty() || !(self.take(name) && self.take(">")) {
            return Err(self.error("the end of the element"));
        }
        Ok(Element { name, attributes, children })
    }

    fn attribute(&mut self) -> Result<(&'a str, &'a str), XmlError> {
        let name = self.name()?;
        if !self.take("=\"") {
            return Err(self.error("`=` and a value in double quotes"));
        }
        let value = self.run(|c| !c.is_control() && !"<>&\"".contains(c));
        if !self.take("\"") {
            return Err(self.error("`\"` after a plain value"));
        }
        if is_binding(name) {
            if value.is_empty() || self.prefixes.contains(&name) {
                return Err(self.error("a namespace for a prefix that has none yet"));
            }
            self.prefixes.push(name);
        }
        Ok((name, value))
    }
}

const DEPTH_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_canonical_form_orders_expands_and_drops() {
        let text = "<s xmlns=\"u:d\" xmlns:b=\"u:2\" xmlns:a=\"u:3\" z=\"1\" a:k=\"2\" b:k=\"3\" y=\"4\">\n \
                    <a:e/><b:f>x</b:f></s>\n";
        let root = parse(text).unwrap();
        assert_eq!(
            root.canonical(&[], None),
            "<s xmlns=\"u:d\" xmlns:a=\"u:3\" xmlns:b=\"u:2\" y=\"4\" z=\"1\" b:k=\"3\" a:k=\"2\">\n \
             <a:e></a:e><b:f>x</b:f></s>"
        );
        assert!(root.canonical(&[], Some("b:f")).ends_with("<a:e></a:e></s>"));
        // What is left out is the document's own signature, none that was put somewhere else.
        let inner = parse("<s><a><f>x</f></a><f>y</f></s>").unwrap();
        assert_eq!(inner.canonical(&[], Some("f")), "<s><a><f>x</f></a></s>");
        let Some(Node::Element(inner)) = root.children.last() else { panic!("an element") };
        assert_eq!(
            inner.canonical(&[&root], None),
            "<b:f xmlns=\"u:d\" xmlns:a=\"u:3\" xmlns:b=\"u:2\">x</b:f>"
        );
    }

    #[test]
    fn other_spellings_are_refused() {
        assert!(parse("<a b=\"c\"><d/></a>").is_ok());
        for text in [
            "",
            "a",
            "<a",
            "<a>",
            "<a></a>",
            "<a>x</b>",
            "<a  b=\"c\"/>",
            "<a b='c'/>",
            "<a b=\"c\" />",
            "<a b=\"c\" b=\"d\"/>",
            "<a>&amp;</a>",
            "<a>x<!-- --></a>",
            "<?xml?><a/>",
            "<!DOCTYPE a><a/>",
            "<a>x\r</a>",
            "<a b=\"\t\"/>",
            "<a><![CDATA[x]]></a>",
            "<a/> ",
            "<a/><b/>",
            "<a xml:lang=\"e\"/>",
            "<a xmlns=\"\"/>",
            "<a xmlns=\"u\"><b xmlns=\"u\"/></a>",
            "<1/>",
            "<a:/>",
            "<a:b:c/>",
            "<a>x]]></a>",
            " <a/>",
            "<a/>\n\n\n",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        for (depth, fits) in [(9, true), (10, false)] {
            let text = format!("{}x{}", "<a>".repeat(depth), "</a>".repeat(depth));
            assert_eq!(parse(&text).is_ok(), fits, "{depth}");
        }
    }
}
