//! The syntax tree of a template.

use std::sync::Arc;

/// A statement and the line on which its tag begins.
#[derive(Debug)]
pub struct Statement {
    pub line: usize,
    pub kind: Kind,
}

/// What a statement does.
#[derive(Debug)]
pub enum Kind {
    /// Text outside of tags.
    Data(String),
    /// `{{ … }}`.
    Output(Expression),
    If(Vec<Branch>, Vec<Statement>),
    For(Arc<For>),
    Break,
    Continue,
    Set(Target, Expression),
    /// `{% set x %}…{% endset %}`, with the filters of `{% set x | f %}` around the captured text.
    SetBlock(Target, Expression, Vec<Statement>),
    With(Vec<(Target, Expression)>, Vec<Statement>),
    Macro(Arc<Macro>),
    /// `{% call(…) f(…) %}…{% endcall %}`.
    CallBlock(Expression, Arc<Macro>),
    /// `{% filter f %}…{% endfilter %}`.
    Filter(Expression, Vec<Statement>),
    /// Statements with a scope of their own, such as `{% generation %}`.
    Block(Vec<Statement>),
}

#[derive(Debug)]
pub struct Branch {
    pub condition: Expression,
    pub body: Vec<Statement>,
}

#[derive(Debug)]
pub struct For {
    pub target: Target,
    pub items: Expression,
    pub filter: Option<Expression>,
    pub is_recursive: bool,
    pub body: Vec<Statement>,
    pub otherwise: Vec<Statement>,
}

#[derive(Debug)]
pub struct Macro {
    pub name: Arc<str>,
    pub parameters: Vec<Parameter>,
    pub body: Vec<Statement>,
    /// Whether it uses `varargs` and so takes more arguments than it has parameters.
    pub has_varargs: bool,
    /// Whether it uses `kwargs` and so takes arguments of other names.
    pub has_kwargs: bool,
}

#[derive(Debug)]
pub struct Parameter {
    pub name: Arc<str>,
    pub default: Option<Expression>,
}

/// What an assignment sets.
#[derive(Debug)]
pub enum Target {
    Name(Arc<str>),
    /// An attribute of a namespace.
    Attribute(Arc<str>, Arc<str>),
    Tuple(Vec<Target>),
}

#[derive(Debug)]
pub enum Expression {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    Name(Arc<str>),
    /// The text that a block captured, the innermost value of its filters.
    Captured,
    List(Vec<Expression>),
    Tuple(Vec<Expression>),
    Dict(Vec<(Expression, Expression)>),
    Not(Box<Expression>),
    Negative(Box<Expression>),
    Positive(Box<Expression>),
    And(Box<Expression>, Box<Expression>),
    Or(Box<Expression>, Box<Expression>),
    Binary(Box<Expression>, Operator, Box<Expression>),
    /// `a ~ b ~ …`.
    Concat(Vec<Expression>),
    /// `a < b <= …`.
    Compare(Box<Expression>, Vec<(Comparison, Expression)>),
    /// `a if b else c`.
    Conditional(Box<Expression>, Box<Expression>, Option<Box<Expression>>),
    Attribute(Box<Expression>, Arc<str>),
    Item(Box<Expression>, Box<Expression>),
    Slice(Box<Expression>, Box<Slice>),
    Call(Box<Expression>, Arguments),
    Filter(Box<Expression>, Arc<str>, Arguments),
    Test(Box<Expression>, Arc<str>, Arguments),
}

#[derive(Debug, Default)]
pub struct Slice {
    pub start: Option<Expression>,
    pub stop: Option<Expression>,
    pub step: Option<Expression>,
}

#[derive(Debug, Default)]
pub struct Arguments {
    pub positional: Vec<Expression>,
    pub named: Vec<(Arc<str>, Expression)>,
    /// `*list`.
    pub list: Option<Box<Expression>>,
    /// `**mapping`.
    pub mapping: Option<Box<Expression>>,
}

#[derive(Clone, Copy, Debug)]
pub enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Remainder,
    Power,
}

#[derive(Clone, Copy, Debug)]
pub enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    NotIn,
}
