//! The grammar of expressions, in the order of precedence of Jinja2's `parser.py`.

use super::failure::Result;
use super::lexer::Kind as Token;
use super::parser::Parser;
use super::tree::{Arguments, Comparison, Expression, Operator, Slice};
use std::sync::Arc;

/// A level of the grammar.
type Level = fn(&mut Parser) -> Result<Expression>;

impl Parser {
    /// An expression, or several with commas, which are a tuple.
    pub fn tuple(&mut self) -> Result<Expression> {
        self.tuple_of(Parser::expression)
    }

    /// The items of a loop, after which an `if` belongs to the loop.
    pub fn tuple_without_condition(&mut self) -> Result<Expression> {
        self.tuple_of(Parser::or)
    }

    fn tuple_of(&mut self, level: Level) -> Result<Expression> {
        let first = level(self)?;
        if !self.is_symbol(",") {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.skip_symbol(",") {
            let is_end = matches!(self.kind(), Token::OutputEnd | Token::BlockEnd);
            if is_end || self.is_symbol(")") {
                break;
            }
            items.push(level(self)?);
        }
        Ok(Expression::Tuple(items))
    }

    /// One expression.
    pub fn expression(&mut self) -> Result<Expression> {
        self.nested(|parser| {
            let mut value = parser.or()?;
            let mut length = 0;
            while parser.skip_name("if") {
                length += 1;
                parser.check_chain(length)?;
                let condition = Box::new(parser.or()?);
                let otherwise = match parser.skip_name("else") {
                    true => Some(Box::new(parser.expression()?)),
                    false => None,
                };
                value = Expression::Conditional(condition, Box::new(value), otherwise);
            }
            Ok(value)
        })
    }

    fn or(&mut self) -> Result<Expression> {
        let (mut left, mut length) = (self.and()?, 0);
        while self.skip_name("or") {
            length += 1;
            self.check_chain(length)?;
            left = Expression::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Expression> {
        let (mut left, mut length) = (self.not()?, 0);
        while self.skip_name("and") {
            length += 1;
            self.check_chain(length)?;
            left = Expression::And(Box::new(left), Box::new(self.not()?));
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<Expression> {
        if self.skip_name("not") {
            return Ok(Expression::Not(Box::new(self.nested(Parser::not)?)));
        }
        self.compare()
    }

    fn compare(&mut self) -> Result<Expression> {
        const SYMBOLS: [(&str, Comparison); 6] = [
            ("==", Comparison::Equal),
            ("!=", Comparison::NotEqual),
            ("<", Comparison::Less),
            ("<=", Comparison::LessOrEqual),
            (">", Comparison::Greater),
            (">=", Comparison::GreaterOrEqual),
        ];
        let (first, mut rest) = (self.sum()?, Vec::new());
        loop {
            let symbol = SYMBOLS.iter().find(|(symbol, _)| self.is_symbol(symbol));
            let comparison = if let Some((symbol, comparison)) = symbol {
                self.expect(symbol)?;
                *comparison
            } else if self.skip_name("in") {
                Comparison::In
            } else if self.is_followed("not", &Token::Name("in".into())) {
                self.next();
                self.next();
                Comparison::NotIn
            } else if rest.is_empty() {
                return Ok(first);
            } else {
                return Ok(Expression::Compare(Box::new(first), rest));
            };
            rest.push((comparison, self.sum()?));
        }
    }

    fn sum(&mut self) -> Result<Expression> {
        const OPERATORS: [(&str, Operator); 2] = [("+", Operator::Add), ("-", Operator::Subtract)];
        self.binary(&OPERATORS, Parser::concat)
    }

    fn concat(&mut self) -> Result<Expression> {
        let first = self.product()?;
        if !self.is_symbol("~") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.skip_symbol("~") {
            parts.push(self.product()?);
        }
        Ok(Expression::Concat(parts))
    }

    fn product(&mut self) -> Result<Expression> {
        const OPERATORS: [(&str, Operator); 4] = [
            ("*", Operator::Multiply),
            ("/", Operator::Divide),
            ("//", Operator::FloorDivide),
            ("%", Operator::Remainder),
        ];
        self.binary(&OPERATORS, Parser::power)
    }

    fn power(&mut self) -> Result<Expression> {
        const OPERATORS: [(&str, Operator); 1] = [("**", Operator::Power)];
        self.binary(&OPERATORS, Parser::unary)
    }

    /// Operators of one precedence, from the left to the right.
    fn binary(&mut self, operators: &[(&str, Operator)], level: Level) -> Result<Expression> {
        let (mut left, mut length) = (level(self)?, 0);
        while let Some((symbol, operator)) =
            operators.iter().find(|(symbol, _)| self.is_symbol(symbol))
        {
            self.expect(symbol)?;
            length += 1;
            self.check_chain(length)?;
            left = Expression::Binary(Box::new(left), *operator, Box::new(level(self)?));
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<Expression> {
        let signed = self.signed()?;
        self.filters_and_tests(signed)
    }

    fn signed(&mut self) -> Result<Expression> {
        if self.skip_symbol("-") {
            let value = Box::new(self.nested(Parser::signed)?);
            return self.postfix(Expression::Negative(value));
        }
        if self.skip_symbol("+") {
            let value = Box::new(self.nested(Parser::signed)?);
            return self.postfix(Expression::Positive(value));
        }
        let value = self.primary()?;
        self.postfix(value)
    }

    fn primary(&mut self) -> Result<Expression> {
        match self.kind() {
            Token::Name(name) => {
                let value = match name.as_str() {
                    "true" | "True" => Expression::Bool(true),
                    "false" | "False" => Expression::Bool(false),
                    "none" | "None" => Expression::None,
                    name => Expression::Name(name.into()),
                };
                self.next();
                Ok(value)
            }
            Token::Int(number) => {
                let number = *number;
                self.next();
                Ok(Expression::Int(number))
            }
            Token::Float(number) => {
                let number = *number;
                self.next();
                Ok(Expression::Float(number))
            }
            Token::Text(_) => {
                let mut text = String::new();
                while let Token::Text(more) = self.kind() {
                    text.push_str(more);
                    self.next();
                }
                Ok(Expression::Text(text))
            }
            Token::Symbol("(") => {
                self.next();
                if self.skip_symbol(")") {
                    return Ok(Expression::Tuple(Vec::new()));
                }
                let value = self.tuple()?;
                self.expect(")")?;
                Ok(value)
            }
            Token::Symbol("[") => {
                self.next();
                Ok(Expression::List(self.items("]", Parser::expression)?))
            }
            Token::Symbol("{") => {
                self.next();
                let pair = |parser: &mut Self| {
                    let key = parser.expression()?;
                    parser.expect(":")?;
                    Ok((key, parser.expression()?))
                };
                Ok(Expression::Dict(self.items("}", pair)?))
            }
            _ => self.unexpected("an expression"),
        }
    }

    /// Items with commas up to a closing bracket.
    fn items<T>(&mut self, end: &str, item: impl Fn(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let mut items = Vec::new();
        while !self.skip_symbol(end) {
            if !items.is_empty() {
                self.expect(",")?;
                if self.skip_symbol(end) {
                    break;
                }
            }
            items.push(item(self)?);
        }
        Ok(items)
    }

    /// The attributes, subscripts and calls after a value.
    fn postfix(&mut self, mut value: Expression) -> Result<Expression> {
        for length in 0.. {
            self.check_chain(length)?;
            value = if self.skip_symbol(".") {
                match self.next() {
                    Token::Name(name) => Expression::Attribute(Box::new(value), name.into()),
                    Token::Int(index) => {
                        Expression::Item(Box::new(value), Box::new(Expression::Int(index)))
                    }
                    _ => return self.fail("expected a name or a number after `.`"),
                }
            } else if self.skip_symbol("[") {
                let item = self.nested(|parser| parser.subscript(value))?;
                self.expect("]")?;
                item
            } else if self.is_symbol("(") {
                Expression::Call(Box::new(value), self.arguments()?)
            } else {
                break;
            };
        }
        Ok(value)
    }

    fn subscript(&mut self, value: Expression) -> Result<Expression> {
        let is_end = |parser: &Self| parser.is_symbol("]") || parser.is_symbol(":");
        let start = if is_end(self) { None } else { Some(self.tuple()?) };
        if !self.skip_symbol(":") {
            return match start {
                Some(index) => Ok(Expression::Item(Box::new(value), Box::new(index))),
                None => self.unexpected("an index"),
            };
        }
        let stop = if is_end(self) { None } else { Some(self.expression()?) };
        let has_step = self.skip_symbol(":") && !is_end(self);
        let step = if has_step { Some(self.expression()?) } else { None };
        Ok(Expression::Slice(Box::new(value), Box::new(Slice { start, stop, step })))
    }

    fn arguments(&mut self) -> Result<Arguments> {
        self.nested(|parser| {
            parser.expect("(")?;
            let mut arguments = Arguments::default();
            let mut is_first = true;
            while !parser.skip_symbol(")") {
                if !is_first {
                    parser.expect(",")?;
                    if parser.skip_symbol(")") {
                        break;
                    }
                }
                is_first = false;
                if parser.skip_symbol("**") {
                    arguments.mapping = Some(Box::new(parser.expression()?));
                } else if parser.skip_symbol("*") {
                    arguments.list = Some(Box::new(parser.expression()?));
                } else if matches!(parser.kind(), Token::Name(_))
                    && parser.is_followed("", &Token::Symbol("="))
                {
                    let name = parser.name()?;
                    parser.expect("=")?;
                    arguments.named.push((name, parser.expression()?));
                } else if arguments.named.is_empty() {
                    arguments.positional.push(parser.expression()?);
                } else {
                    return parser.fail("a positional argument follows a named one");
                }
            }
            Ok(arguments)
        })
    }

    /// The filters, tests and calls after a value.
    fn filters_and_tests(&mut self, mut value: Expression) -> Result<Expression> {
        for length in 0.. {
            self.check_chain(length)?;
            value = if self.is_symbol("|") {
                self.filters(value, false)?
            } else if self.skip_name("is") {
                self.test(value)?
            } else if self.is_symbol("(") {
                Expression::Call(Box::new(value), self.arguments()?)
            } else {
                break;
            };
        }
        Ok(value)
    }

    /// Filters around a value, the first of which may come without its `|`.
    pub fn filters(&mut self, mut value: Expression, is_begun: bool) -> Result<Expression> {
        let (mut is_begun, mut length) = (is_begun, 0);
        while is_begun || self.skip_symbol("|") {
            is_begun = false;
            length += 1;
            self.check_chain(length)?;
            let name = self.name()?;
            let has_arguments = self.is_symbol("(");
            let arguments = if has_arguments { self.arguments()? } else { Arguments::default() };
            value = Expression::Filter(Box::new(value), name, arguments);
        }
        Ok(value)
    }

    fn test(&mut self, value: Expression) -> Result<Expression> {
        let is_negated = self.skip_name("not");
        let name: Arc<str> = self.name()?;
        let is_operand = match self.kind() {
            Token::Name(name) => !["else", "or", "and", "if", "is"].contains(&name.as_str()),
            Token::Text(_) | Token::Int(_) | Token::Float(_) => true,
            Token::Symbol(symbol) => ["[", "{"].contains(symbol),
            _ => false,
        };
        let mut arguments = Arguments::default();
        if self.is_symbol("(") {
            arguments = self.arguments()?;
        } else if is_operand {
            let operand = self.primary()?;
            arguments.positional.push(self.postfix(operand)?);
        }
        let test = Expression::Test(Box::new(value), name, arguments);
        Ok(if is_negated { Expression::Not(Box::new(test)) } else { test })
    }
}
