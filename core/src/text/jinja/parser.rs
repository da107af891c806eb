//! Tokens to the syntax tree: statements here, expressions in [`expressions`](super::expressions).

use super::failure::{Failure, Result};
use super::lexer::{self, Kind as TokenKind, Token};
use super::tree::{Branch, Expression, For, Kind, Macro, Parameter, Statement, Target};
use std::sync::Arc;

/// The deepest nesting: more than a template needs, and small enough for the stack.
const MAX_DEPTH: usize = 120;

/// Parses a template.
pub fn parse(source: &str) -> Result<Vec<Statement>> {
    let mut parser = Parser { tokens: lexer::tokens(source)?, at: 0, depth: 0 };
    let (body, _) = parser.body(&[])?;
    Ok(body)
}

pub struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn token(&self) -> &Token {
        &self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    pub fn is_symbol(&self, symbol: &str) -> bool {
        matches!(&self.token().kind, TokenKind::Symbol(found) if *found == symbol)
    }

    pub fn is_name(&self, name: &str) -> bool {
        matches!(&self.token().kind, TokenKind::Name(found) if found == name)
    }

    /// Whether a name and then another token follow.
    pub fn is_followed(&self, name: &str, next: &TokenKind) -> bool {
        let is_next = self.tokens.get(self.at + 1).is_some_and(|token| token.kind == *next);
        is_next && (name.is_empty() || self.is_name(name))
    }

    pub fn kind(&self) -> &TokenKind {
        &self.token().kind
    }

    pub fn next(&mut self) -> TokenKind {
        let kind = self.token().kind.clone();
        self.at += 1;
        kind
    }

    pub fn skip_symbol(&mut self, symbol: &str) -> bool {
        let found = self.is_symbol(symbol);
        self.at += usize::from(found);
        found
    }

    pub fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        self.at += usize::from(found);
        found
    }

    pub fn fail<T>(&self, reason: impl Into<String>) -> Result<T> {
        Err(Failure { line: Some(self.token().line), reason: reason.into() })
    }

    pub fn unexpected<T>(&self, expected: &str) -> Result<T> {
        let found = match &self.token().kind {
            TokenKind::End => "the end of the template".into(),
            TokenKind::BlockEnd => "the end of the tag".into(),
            TokenKind::OutputEnd => "the end of the expression".into(),
            TokenKind::Name(name) => format!("`{name}`"),
            TokenKind::Symbol(symbol) => format!("`{symbol}`"),
            _ => "another token".into(),
        };
        self.fail(format!("unexpected {found}, expected {expected}"))
    }

    pub fn expect(&mut self, symbol: &str) -> Result<()> {
        if self.skip_symbol(symbol) { Ok(()) } else { self.unexpected(&format!("`{symbol}`")) }
    }

    pub fn name(&mut self) -> Result<Arc<str>> {
        match self.kind() {
            TokenKind::Name(name) => {
                let name = name.as_str().into();
                self.at += 1;
                Ok(name)
            }
            _ => self.unexpected("a name"),
        }
    }

    /// Runs a part of the parser one level deeper.
    pub fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth == MAX_DEPTH {
            return self.fail("the template is too deeply nested");
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    /// Refuses a chain of operators that would nest too deeply.
    pub fn check_chain(&self, length: usize) -> Result<()> {
        if length > MAX_DEPTH { self.fail("the expression is too long") } else { Ok(()) }
    }

    fn end_of_tag(&mut self) -> Result<()> {
        match self.kind() {
            TokenKind::BlockEnd => {
                self.at += 1;
                Ok(())
            }
            _ => self.unexpected("the end of the tag"),
        }
    }

    /// The statements up to a tag with one of these names, and the name. The parser is then after
    /// the name.
    fn body(&mut self, ends: &[&str]) -> Result<(Vec<Statement>, String)> {
        let mut body = Vec::new();
        loop {
            let line = self.token().line;
            let kind = match self.next() {
                TokenKind::Data(text) => Kind::Data(text),
                TokenKind::OutputBegin => {
                    let expression = self.tuple()?;
                    match self.next() {
                        TokenKind::OutputEnd => Kind::Output(expression),
                        _ => {
                            self.at -= 1;
                            return self.unexpected("the end of the expression");
                        }
                    }
                }
                TokenKind::BlockBegin => {
                    let name = self.name()?;
                    if ends.contains(&&*name) {
                        return Ok((body, name.to_string()));
                    }
                    self.nested(|parser| parser.statement(&name))?
                }
                TokenKind::End if ends.is_empty() => return Ok((body, String::new())),
                _ => {
                    self.at -= 1;
                    return self.unexpected(&format!("`{}`", ends.join("` or `")));
                }
            };
            body.push(Statement { line, kind });
        }
    }

    /// The statements up to a tag without arguments.
    fn body_until(&mut self, end: &str) -> Result<Vec<Statement>> {
        let (body, _) = self.body(&[end])?;
        self.skip_name_before_end();
        self.end_of_tag()?;
        Ok(body)
    }

    /// Skips the name that may follow `endmacro` and `endblock`.
    fn skip_name_before_end(&mut self) {
        self.at += usize::from(self.is_followed("", &TokenKind::BlockEnd));
    }

    fn statement(&mut self, name: &str) -> Result<Kind> {
        match name {
            "if" => self.conditional(),
            "for" => self.for_loop(),
            "set" => self.set(),
            "with" => self.with(),
            "macro" => {
                let name = self.name()?;
                let parameters = self.parameters()?;
                self.end_of_tag()?;
                Ok(Kind::Macro(self.macro_until("endmacro", name, parameters)?))
            }
            "call" => {
                let is_plain = !self.is_symbol("(");
                let parameters = if is_plain { Vec::new() } else { self.parameters()? };
                let call = self.expression()?;
                if !matches!(call, Expression::Call(..)) {
                    return self.fail("expected a call");
                }
                self.end_of_tag()?;
                let caller = self.macro_until("endcall", "caller".into(), parameters)?;
                Ok(Kind::CallBlock(call, caller))
            }
            "filter" => {
                let filter = self.filters(Expression::Captured, true)?;
                self.end_of_tag()?;
                Ok(Kind::Filter(filter, self.body_until("endfilter")?))
            }
            // The block marks what an assistant wrote, which only training needs.
            "generation" => {
                self.end_of_tag()?;
                Ok(Kind::Block(self.body_until("endgeneration")?))
            }
            // Only templates that extend others replace it.
            "block" => {
                self.name()?;
                self.end_of_tag()?;
                Ok(Kind::Block(self.body_until("endblock")?))
            }
            "break" | "continue" => {
                self.end_of_tag()?;
                Ok(if name == "break" { Kind::Break } else { Kind::Continue })
            }
            other => self.fail(format!("unknown tag `{other}`")),
        }
    }

    fn macro_until(
        &mut self,
        end: &str,
        name: Arc<str>,
        parameters: Vec<Parameter>,
    ) -> Result<Arc<Macro>> {
        let start = self.at;
        let body = self.body_until(end)?;
        let uses = |name: &str| {
            let is_name = |token: &Token| matches!(&token.kind, TokenKind::Name(n) if n == name);
            self.tokens[start..self.at].iter().any(is_name)
        };
        let (has_varargs, has_kwargs) = (uses("varargs"), uses("kwargs"));
        Ok(Arc::new(Macro { name, parameters, body, has_varargs, has_kwargs }))
    }

    fn conditional(&mut self) -> Result<Kind> {
        let (mut branches, mut otherwise) = (Vec::new(), Vec::new());
        loop {
            let condition = self.tuple()?;
            self.end_of_tag()?;
            let (body, end) = self.body(&["elif", "else", "endif"])?;
            branches.push(Branch { condition, body });
            if end == "else" {
                self.end_of_tag()?;
                otherwise = self.body_until("endif")?;
                return Ok(Kind::If(branches, otherwise));
            }
            if end == "endif" {
                self.end_of_tag()?;
                return Ok(Kind::If(branches, otherwise));
            }
        }
    }

    fn for_loop(&mut self) -> Result<Kind> {
        let target = self.targets(false)?;
        if !self.skip_name("in") {
            return self.unexpected("`in`");
        }
        let items = self.tuple_without_condition()?;
        let filter = if self.skip_name("if") { Some(self.expression()?) } else { None };
        let is_recursive = self.skip_name("recursive");
        self.end_of_tag()?;
        let (body, end) = self.body(&["else", "endfor"])?;
        self.end_of_tag()?;
        let otherwise = if end == "else" { self.body_until("endfor")? } else { Vec::new() };
        Ok(Kind::For(Arc::new(For { target, items, filter, is_recursive, body, otherwise })))
    }

    fn set(&mut self) -> Result<Kind> {
        let target = self.targets(true)?;
        if self.skip_symbol("=") {
            let value = self.tuple()?;
            self.end_of_tag()?;
            return Ok(Kind::Set(target, value));
        }
        let filter = self.filters(Expression::Captured, false)?;
        self.end_of_tag()?;
        Ok(Kind::SetBlock(target, filter, self.body_until("endset")?))
    }

    fn with(&mut self) -> Result<Kind> {
        let mut values = Vec::new();
        while !matches!(self.kind(), TokenKind::BlockEnd) {
            if !values.is_empty() {
                self.expect(",")?;
            }
            let target = self.target(false)?;
            self.expect("=")?;
            values.push((target, self.expression()?));
        }
        self.end_of_tag()?;
        Ok(Kind::With(values, self.body_until("endwith")?))
    }

    fn parameters(&mut self) -> Result<Vec<Parameter>> {
        self.expect("(")?;
        let mut parameters = Vec::new();
        while !self.skip_symbol(")") {
            if !parameters.is_empty() {
                self.expect(",")?;
            }
            if self.skip_symbol(")") {
                break;
            }
            let name = self.name()?;
            let default = if self.skip_symbol("=") { Some(self.expression()?) } else { None };
            parameters.push(Parameter { name, default });
        }
        Ok(parameters)
    }

    /// The targets of an assignment or a loop.
    fn targets(&mut self, with_attributes: bool) -> Result<Target> {
        let mut targets = vec![self.target(with_attributes)?];
        let is_tuple = self.is_symbol(",");
        while self.skip_symbol(",") {
            let is_name = matches!(self.kind(), TokenKind::Name(_)) && !self.is_name("in");
            if !is_name && !self.is_symbol("(") {
                break;
            }
            targets.push(self.target(with_attributes)?);
        }
        if is_tuple {
            return Ok(Target::Tuple(targets));
        }
        Ok(targets.remove(0))
    }

    fn target(&mut self, with_attributes: bool) -> Result<Target> {
        if self.skip_symbol("(") {
            let target = self.nested(|parser| parser.targets(with_attributes))?;
            self.expect(")")?;
            return Ok(target);
        }
        let name = self.name()?;
        if with_attributes && self.skip_symbol(".") {
            return Ok(Target::Attribute(name, self.name()?));
        }
        Ok(Target::Name(name))
    }
}
