//! Statements, scopes and the limits of a render. Expressions are in [`evaluate`](super::evaluate).

use super::arguments::Arguments;
use super::failure::{Failure, Result};
use super::text::Text;
use super::tree::{Branch, Expression, For, Kind, Macro, Statement, Target};
use super::value::{Closure, Dict, Kind as Sequence, List, Loop, Value};
use super::{functions, operators, print};
use jiff::civil::DateTime;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

/// The deepest nesting of statements, expressions and macros: small enough for the stack of a thread.
const MAX_DEPTH: usize = 200;

/// The steps of a template in itself; an endless loop uses them up in a second.
const FUEL: u64 = 5_000_000;

/// The further steps for each value in the conversation.
const FUEL_PER_VALUE: u64 = 1_000;

/// The state of one render.
pub struct Interpreter<'a> {
    pub variables: &'a HashMap<String, Value>,
    pub now: DateTime,
    /// What blocks captured for the filters around them.
    pub captured: Vec<Value>,
    scopes: Vec<Scope>,
    current: usize,
    generation: u64,
    fuel: u64,
    depth: usize,
    pub ranges: functions::Ranges,
    /// The recursive loops that are running.
    loops: Vec<(Rc<Loop>, Arc<For>)>,
}

/// The names that a block, a loop or a macro sets.
struct Scope {
    names: Vec<(Arc<str>, Value)>,
    /// The scope that is seen through this one.
    outer: usize,
    generation: u64,
}

/// How the statements of a body ended.
#[derive(PartialEq)]
pub enum Flow {
    Next,
    Break,
    Continue,
}

impl<'a> Interpreter<'a> {
    pub fn new(variables: &'a HashMap<String, Value>, now: DateTime) -> Self {
        let weight: usize = variables.values().map(Value::weight).sum();
        let outermost = Scope { names: Vec::new(), outer: 0, generation: 0 };
        Interpreter {
            variables,
            now,
            captured: Vec::new(),
            scopes: vec![outermost],
            current: 0,
            generation: 0,
            fuel: FUEL.saturating_add((weight as u64).saturating_mul(FUEL_PER_VALUE)),
            depth: 0,
            ranges: functions::Ranges::default(),
            loops: Vec::new(),
        }
    }

    /// Runs a template.
    pub fn run(&mut self, body: &[Statement]) -> Result<Text> {
        let mut out = Text::default();
        self.body(body, &mut out)?;
        if out.is_cut() {
            return Err(Failure::of("the rendered text is too long"));
        }
        Ok(out)
    }

    /// Uses fuel up.
    pub fn charge(&mut self, steps: usize) -> Result<()> {
        let left = self.fuel.checked_sub(steps as u64);
        self.fuel = left.ok_or_else(|| Failure::of("the template runs for too long"))?;
        Ok(())
    }

    /// Runs a part one level deeper.
    pub fn nested<T>(&mut self, run: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth == MAX_DEPTH {
            return Err(Failure::of("the template recurses too deeply"));
        }
        self.charge(1)?;
        self.depth += 1;
        let result = run(self);
        self.depth -= 1;
        result
    }

    /// The value of a name.
    pub fn lookup(&self, name: &str) -> Value {
        let mut at = self.current;
        loop {
            let scope = &self.scopes[at];
            if let Some((_, value)) = scope.names.iter().rev().find(|(known, _)| &**known == name) {
                return value.clone();
            }
            if at == 0 {
                break;
            }
            at = scope.outer;
        }
        let given = self.variables.get(name).cloned();
        let found = given.or_else(|| functions::find(name));
        found.unwrap_or_else(|| Value::undefined(&format!("'{name}' is undefined")))
    }

    fn set(&mut self, name: &Arc<str>, value: Value) -> Result<()> {
        value.check()?;
        let names = &mut self.scopes[self.current].names;
        match names.iter_mut().find(|(known, _)| known == name) {
            Some((_, found)) => *found = value,
            None => names.push((name.clone(), value)),
        }
        Ok(())
    }

    fn assign(&mut self, target: &Target, value: Value) -> Result<()> {
        match target {
            Target::Name(name) => self.set(name, value),
            Target::Attribute(namespace, name) => {
                value.check()?;
                let Value::Namespace(namespace) = self.lookup(namespace) else {
                    return Err(Failure::of("cannot assign attribute on non-namespace object"));
                };
                namespace.borrow_mut().insert(Value::written(name), value);
                Ok(())
            }
            Target::Tuple(targets) => {
                let values = operators::iterate(&value)?;
                if values.len() != targets.len() {
                    let (wanted, found) = (targets.len(), values.len());
                    return Err(Failure::of(format!("{wanted} values are expected, not {found}")));
                }
                targets
                    .iter()
                    .zip(values.iter())
                    .try_for_each(|(target, value)| self.assign(target, value.clone()))
            }
        }
    }

    /// Runs something in a new scope, which sees the scope `outer`.
    fn scoped<T>(&mut self, outer: usize, run: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.generation += 1;
        let scope = Scope { names: Vec::new(), outer, generation: self.generation };
        let before = std::mem::replace(&mut self.current, self.scopes.len());
        self.scopes.push(scope);
        let result = run(self);
        self.scopes.pop();
        self.current = before;
        result
    }

    fn body(&mut self, body: &[Statement], out: &mut Text) -> Result<Flow> {
        for statement in body {
            let flow = self.nested(|this| this.statement(&statement.kind, out));
            let flow = flow.map_err(|failure| Failure {
                line: failure.line.or(Some(statement.line)),
                ..failure
            })?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn statement(&mut self, statement: &Kind, out: &mut Text) -> Result<Flow> {
        match statement {
            Kind::Data(text) => out.push_str(text, false),
            Kind::Output(expression) => {
                let value = self.evaluate(expression)?;
                let length = out.as_str().len();
                print::push(&value, out);
                self.charge((out.as_str().len() - length) / 16)?;
            }
            Kind::If(branches, otherwise) => return self.conditional(branches, otherwise, out),
            Kind::For(code) => {
                let items = self.evaluate(&code.items)?;
                self.loop_over(code, &items, 1, out)?;
            }
            Kind::Break => return Ok(Flow::Break),
            Kind::Continue => return Ok(Flow::Continue),
            Kind::Set(target, expression) => {
                let value = self.evaluate(expression)?;
                self.assign(target, value)?;
            }
            Kind::SetBlock(target, filter, body) => {
                let value = self.capture(body, filter)?;
                self.assign(target, value)?;
            }
            Kind::Filter(filter, body) => {
                let value = self.capture(body, filter)?;
                print::push(&value, out);
            }
            Kind::With(values, body) => {
                let values =
                    values.iter().map(|(target, value)| Ok((target, self.evaluate(value)?)));
                let values = values.collect::<Result<Vec<_>>>()?;
                return self.scoped(self.current, |this| {
                    values
                        .into_iter()
                        .try_for_each(|(target, value)| this.assign(target, value))?;
                    this.body(body, out)
                });
            }
            Kind::Block(body) => return self.scoped(self.current, |this| this.body(body, out)),
            Kind::Macro(code) => {
                let closure = self.closure(code);
                self.set(&code.name, closure)?;
            }
            Kind::CallBlock(call, code) => {
                let caller = self.closure(code);
                let value = self.call_with(call, Some(caller))?;
                print::push(&value, out);
            }
        }
        Ok(Flow::Next)
    }

    fn conditional(
        &mut self,
        branches: &[Branch],
        otherwise: &[Statement],
        out: &mut Text,
    ) -> Result<Flow> {
        for branch in branches {
            if self.evaluate(&branch.condition)?.is_true() {
                return self.body(&branch.body, out);
            }
        }
        self.body(otherwise, out)
    }

    /// The text of a body, through filters.
    fn capture(&mut self, body: &[Statement], filter: &Expression) -> Result<Value> {
        let mut text = Text::default();
        self.scoped(self.current, |this| this.body(body, &mut text))?;
        self.captured.push(text.into());
        let value = self.evaluate(filter);
        self.captured.pop();
        value
    }

    fn closure(&self, code: &Arc<Macro>) -> Value {
        let generation = self.scopes[self.current].generation;
        Value::Macro(Closure { code: code.clone(), scope: self.current, generation })
    }

    fn loop_over(
        &mut self,
        code: &Arc<For>,
        items: &Value,
        depth: usize,
        out: &mut Text,
    ) -> Result<()> {
        let mut items = match items {
            // Python refuses it. Templates that loop over absent calls of tools mean nothing.
            Value::None => List::new(Sequence::List, Vec::new()),
            items => operators::iterate(items)?,
        };
        if let Some(filter) = &code.filter {
            let mut kept = Vec::new();
            for item in items.iter() {
                let is_kept = self.scoped(self.current, |this| {
                    this.assign(&code.target, item.clone())?;
                    Ok(this.evaluate(filter)?.is_true())
                })?;
                if is_kept {
                    kept.push(item.clone());
                }
            }
            items = List::new(Sequence::List, kept);
        }
        if items.is_empty() {
            return self.scoped(self.current, |this| this.body(&code.otherwise, out)).map(drop);
        }
        let state = Rc::new(Loop {
            items: items.clone(),
            index: Cell::new(0),
            depth,
            changed: RefCell::new(None),
            is_recursive: code.is_recursive,
        });
        self.loops.push((state.clone(), code.clone()));
        let name: Arc<str> = "loop".into();
        for (index, item) in items.iter().enumerate() {
            state.index.set(index);
            let flow = self.scoped(self.current, |this| {
                this.set(&name, Value::Loop(state.clone()))?;
                this.assign(&code.target, item.clone())?;
                this.body(&code.body, out)
            })?;
            if flow == Flow::Break {
                break;
            }
        }
        self.loops.pop();
        Ok(())
    }

    /// `loop(items)` in a recursive loop.
    pub fn recurse(&mut self, state: &Rc<Loop>, items: &Value) -> Result<Value> {
        let running = self.loops.iter().find(|(running, _)| Rc::ptr_eq(running, state));
        let Some((_, code)) = running.filter(|_| state.is_recursive) else {
            return Err(Failure::of("the loop is not recursive"));
        };
        let (code, mut out) = (code.clone(), Text::default());
        self.nested(|this| this.loop_over(&code, items, state.depth + 1, &mut out))?;
        Ok(out.into())
    }

    /// Calls a macro.
    pub fn call_macro(&mut self, closure: &Closure, mut arguments: Arguments) -> Result<Value> {
        let code = &closure.code;
        let caller = arguments.named.iter().position(|(name, _)| &**name == "caller");
        let caller = caller.filter(|_| code.parameters.iter().all(|p| &*p.name != "caller"));
        let caller = caller.map(|index| arguments.named.remove(index).1);
        let is_alive = self.scopes.get(closure.scope);
        let is_alive = is_alive.is_some_and(|scope| scope.generation == closure.generation);
        let outer = if is_alive { closure.scope } else { 0 };
        let mut out = Text::default();
        self.nested(|this| {
            this.scoped(outer, |this| {
                this.bind(code, arguments)?;
                if let Some(caller) = caller {
                    this.set(&"caller".into(), caller)?;
                }
                this.body(&code.body, &mut out)
            })
        })?;
        Ok(out.into())
    }

    fn bind(&mut self, code: &Macro, arguments: Arguments) -> Result<()> {
        let Arguments { positional, mut named } = arguments;
        let (expected, mut positional) = (code.parameters.len(), positional.into_iter());
        for parameter in &code.parameters {
            let by_name = named.iter().position(|(name, _)| *name == parameter.name);
            let by_name = by_name.map(|index| named.remove(index).1);
            let value = match (positional.next().or(by_name), &parameter.default) {
                (Some(value), _) => value,
                (None, Some(default)) => self.evaluate(default)?,
                (None, None) => {
                    let name = &parameter.name;
                    Value::undefined(&format!("parameter '{name}' was not provided"))
                }
            };
            self.set(&parameter.name, value)?;
        }
        let name = &code.name;
        if code.has_varargs {
            self.set(&"varargs".into(), Value::tuple(positional.collect()))?;
        } else if positional.next().is_some() {
            let reason = format!("macro '{name}' takes not more than {expected} argument(s)");
            return Err(Failure::of(reason));
        }
        if code.has_kwargs {
            let named = named.into_iter().map(|(name, value)| (Value::written(&name), value));
            return self.set(&"kwargs".into(), Dict::of_distinct(named.collect()).into());
        }
        match named.first() {
            Some((argument, _)) => {
                Err(Failure::of(format!("macro '{name}' takes no keyword argument '{argument}'")))
            }
            None => Ok(()),
        }
    }
}
