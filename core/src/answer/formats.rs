//! The wire formats in which models write calls of tools.

/// The marks around the calls of an answer, and the syntaxes of one call between them.
#[derive(Debug, PartialEq)]
pub(crate) struct Format {
    /// Its names: `tool_parser_type` of mlx-lm, and what other libraries call it.
    pub names: &'static [&'static str],
    /// The marks that open a block of calls.
    pub open: &'static [&'static str],
    /// The marks that close it. Without one, a block is a single call.
    pub close: &'static [&'static str],
    pub syntaxes: &'static [Syntax],
    pub kind: Kind,
}

/// What may stand before a block of calls, and what a text without a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The marks open calls wherever they stand.
    Marked,
    /// The marks also end thoughts that are still open.
    EndsThoughts,
    /// The marks, or the absence of any, are as people write too: only the name of a tool makes a call.
    Plain,
}

/// How one call is written.
#[derive(Debug, PartialEq)]
pub(crate) enum Syntax {
    /// A JSON object with a name and arguments, or a list of them.
    Json,
    /// A list of JSON objects `{name: arguments}`.
    JsonByName,
    /// A name, and the arguments as a JSON object.
    Named(Named),
    /// Tags around a name and each argument.
    Tags(Tags),
    /// `[name(key='value')]`.
    Python,
    /// `call:name{key:value}`, with a mark around strings.
    Braces { quote: &'static str },
}

#[derive(Debug, PartialEq)]
pub(crate) struct Named {
    pub open: &'static str,
    /// What else a name has beside it.
    pub form: NameForm,
    /// What follows the name.
    pub name_end: &'static [&'static str],
    /// What follows the arguments; nothing if the JSON object is the end.
    pub close: &'static [&'static str],
}

/// What stands beside the name of a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum NameForm {
    Alone,
    /// `functions.name:0`.
    Numbered,
    /// `id<|tool_call:name|>name`.
    BehindId,
    /// `name[CALL_ID]id` in later models.
    BeforeId,
    /// `function<｜tool▁sep｜>name` with the arguments in a block of code, in earlier models.
    BehindKind,
    /// The header of a message: `<|channel|>commentary to=functions.name`.
    Message,
}

#[derive(Debug, PartialEq)]
pub(crate) struct Tags {
    pub open: &'static str,
    pub name_end: &'static str,
    /// The end of the attributes after the name, and after a key.
    pub attributes_end: &'static str,
    pub key_open: &'static str,
    pub key_end: &'static str,
    /// A mark between key and value.
    pub value_open: &'static str,
    /// `{key}` stands for the key.
    pub value_close: &'static str,
    pub close: &'static str,
    /// The attribute of a key whose value is a string, and of another one.
    pub attributes: Option<[&'static str; 2]>,
    /// Whether a call has a number.
    pub is_indexed: bool,
    /// Whether line breaks stand around values.
    pub padded: bool,
    /// Whether `<![CDATA[…]]>` may stand around values.
    pub has_cdata: bool,
}

const NO_TAGS: Tags = Tags {
    open: "",
    name_end: "",
    attributes_end: "",
    key_open: "",
    key_end: "",
    value_open: "",
    value_close: "",
    close: "",
    attributes: None,
    is_indexed: false,
    padded: false,
    has_cdata: false,
};

const FUNCTION_TAGS: Tags = Tags {
    open: "<function=",
    name_end: ">",
    key_open: "<parameter=",
    key_end: ">",
    value_close: "</parameter>",
    close: "</function>",
    padded: true,
    ..NO_TAGS
};

const ARGUMENT_KEYS: Tags = Tags {
    name_end: "\n",
    key_open: "<arg_key>",
    key_end: "</arg_key>",
    value_open: "<arg_value>",
    value_close: "</arg_value>",
    ..NO_TAGS
};

const LONGCAT_KEYS: Tags = Tags {
    name_end: "\n",
    key_open: "<longcat_arg_key>",
    key_end: "</longcat_arg_key>",
    value_open: "<longcat_arg_value>",
    value_close: "</longcat_arg_value>",
    ..NO_TAGS
};

const INVOKE: Tags = Tags {
    open: "<invoke name=\"",
    name_end: "\"",
    attributes_end: ">",
    key_open: "<parameter name=\"",
    key_end: "\"",
    value_close: "</parameter>",
    close: "</invoke>",
    ..NO_TAGS
};

const ATEM: Tags = Tags {
    open: "<atem:invoke name=\"",
    key_open: "<atem:parameter name=\"",
    value_close: "</atem:parameter>",
    close: "</atem:invoke>",
    ..INVOKE
};

const DSML: Tags = Tags {
    open: "<｜DSML｜invoke name=\"",
    key_open: "<｜DSML｜parameter name=\"",
    value_close: "</｜DSML｜parameter>",
    attributes: Some([" string=\"true\"", " string=\"false\""]),
    close: "</｜DSML｜invoke>",
    ..INVOKE
};

const FUNCTION_NAME: Tags = Tags {
    open: "<function name=\"",
    key_open: "<param name=\"",
    value_close: "</param>",
    close: "</function>",
    has_cdata: true,
    ..INVOKE
};

const MINIMAX_M3: Tags = Tags {
    open: "]<]minimax[>[<invoke name=\"",
    name_end: "\">",
    key_open: "]<]minimax[>[<",
    key_end: ">",
    value_close: "]<]minimax[>[</{key}>",
    close: "]<]minimax[>[</invoke>",
    ..NO_TAGS
};

const XTML: Tags = Tags {
    open: "<|open|>call tool=\"",
    name_end: "\"",
    attributes_end: "<|sep|>",
    key_open: "<|open|>argument key=\"",
    key_end: "\"",
    value_close: "<|close|>argument<|sep|>",
    attributes: Some([" type=\"string\"", " type=\"object\""]),
    is_indexed: true,
    close: "<|close|>call<|sep|>",
    ..NO_TAGS
};

/// A JSON object between tags in place of the arguments of [`XTML`].
pub(super) const XTML_JSON: [&str; 2] = ["<|open|>json", "<|close|>json<|sep|>"];

const KIMI: Named = Named {
    open: "<|tool_call_begin|>",
    form: NameForm::Numbered,
    name_end: &["<|tool_call_argument_begin|>"],
    close: &["<|tool_call_end|>"],
};

const DEEPSEEK: Named = Named {
    open: "<｜tool▁call▁begin｜>",
    form: NameForm::BehindKind,
    name_end: &["<｜tool▁sep｜>"],
    close: &["<｜tool▁call▁end｜>"],
};

const SOLAR: Named = Named {
    open: "<|tool_call:begin|>",
    form: NameForm::BehindId,
    name_end: &["<|tool_call:args|>"],
    close: &["<|tool_call:end|>"],
};

const MISTRAL: Named =
    Named { open: "", form: NameForm::BeforeId, name_end: &["[ARGS]"], close: &[] };

/// What follows the header of a message to a function.
pub(super) const MESSAGE: Named =
    Named { open: "", form: NameForm::Message, name_end: &["<|message|>"], close: &[] };

const FUNCTION_JSON: Named =
    Named { open: "<function=", form: NameForm::Alone, name_end: &[">"], close: &["</function>"] };

const HEADING: Named = Named { open: ">>>", form: NameForm::Alone, name_end: &["\n"], close: &[] };

const ACTION: Named = Named {
    open: "Action: ",
    form: NameForm::Alone,
    name_end: &["\nAction Input:", "\nAction Input: "],
    close: &[],
};

const ROLE: Named =
    Named { open: "", form: NameForm::Alone, name_end: &["<|role_sep|>\n"], close: &[] };

const MARKED: Format =
    Format { names: &[], open: &[], close: &[], syntaxes: &[], kind: Kind::Marked };

impl Format {
    /// Whether its mark is the beginning of a call itself.
    pub fn opens_call(&self) -> bool {
        let is_call = |open: &&str| {
            open.starts_with('{') || self.syntaxes.iter().any(|syntax| syntax.open() == *open)
        };
        self.open.iter().any(is_call)
    }

    /// Whether only the name of a tool tells a call from a text.
    pub fn is_plain(&self) -> bool {
        self.kind == Kind::Plain
    }

    /// Whether its calls are a list of JSON objects.
    pub fn is_list(&self) -> bool {
        let lists = ["mistral", "cohere", "granite", "nemotron", "apertus", "hunyuan"];
        lists.contains(&self.names[0])
    }

    /// What stands before the name and before the arguments of a JSON object.
    pub fn json_keys(&self) -> [&'static str; 2] {
        match self.names[0] {
            "cohere" => ["\"tool_call_id\": \"0\", \"tool_name\": ", "\"parameters\": "],
            "llama3" => ["\"name\": ", "\"parameters\": "],
            _ => ["\"name\": ", "\"arguments\": "],
        }
    }

    /// The marks that occur in calls.
    pub fn marks(&self) -> Vec<&'static str> {
        let mut marks = [self.open, self.close].concat();
        for syntax in self.syntaxes {
            match syntax {
                Syntax::Named(named) => {
                    marks.push(named.open);
                    marks.extend(named.name_end.iter().chain(named.close));
                    marks.extend(["[CALL_ID]", "<|tool_call:name|>"]);
                }
                Syntax::Tags(tags) => marks.extend([
                    tags.open,
                    tags.attributes_end,
                    tags.key_open,
                    tags.key_end,
                    tags.value_open,
                    tags.value_close,
                    tags.close,
                ]),
                Syntax::Braces { quote } => marks.push(quote),
                Syntax::Json | Syntax::JsonByName | Syntax::Python => {}
            }
        }
        marks
    }
}

/// All formats, the more specific before those whose marks they contain.
pub(super) const FORMATS: &[Format] = &[
    Format {
        names: &["minimax_m3"],
        open: &["]<]minimax[>[<tool_call>"],
        close: &["]<]minimax[>[</tool_call>"],
        syntaxes: &[Syntax::Tags(MINIMAX_M3)],
        ..MARKED
    },
    Format {
        names: &["minimax_m2"],
        open: &["<minimax:tool_call>"],
        close: &["</minimax:tool_call>"],
        syntaxes: &[Syntax::Tags(INVOKE)],
        ..MARKED
    },
    Format {
        names: &["gemma4"],
        open: &["<|tool_call>"],
        close: &["<tool_call|>"],
        syntaxes: &[Syntax::Braces { quote: "<|\"|>" }],
        ..MARKED
    },
    Format {
        names: &["function_gemma", "gemma"],
        open: &["<start_function_call>"],
        close: &["<end_function_call>"],
        syntaxes: &[Syntax::Braces { quote: "<escape>" }],
        ..MARKED
    },
    Format {
        names: &["longcat"],
        open: &["<longcat_tool_call>"],
        close: &["</longcat_tool_call>"],
        syntaxes: &[Syntax::Json, Syntax::Tags(LONGCAT_KEYS)],
        ..MARKED
    },
    Format {
        names: &["seed_oss", "seed"],
        open: &["<seed:tool_call>"],
        close: &["</seed:tool_call>"],
        syntaxes: &[Syntax::Tags(FUNCTION_TAGS)],
        ..MARKED
    },
    Format {
        names: &["kimi_k2", "kimiK2"],
        open: &["<|tool_calls_section_begin|>"],
        close: &["<|tool_calls_section_end|>"],
        syntaxes: &[Syntax::Named(KIMI)],
        kind: Kind::EndsThoughts,
    },
    Format {
        names: &["kimi_k3", "kimiK3"],
        open: &["<|open|>tools<|sep|>"],
        close: &["<|close|>tools<|sep|>"],
        syntaxes: &[Syntax::Tags(XTML)],
        kind: Kind::EndsThoughts,
    },
    Format {
        names: &["deepseek_v32"],
        open: &["<｜DSML｜function_calls>", "<｜DSML｜tool_calls>"],
        close: &["</｜DSML｜function_calls>", "</｜DSML｜tool_calls>"],
        syntaxes: &[Syntax::Tags(DSML)],
        ..MARKED
    },
    Format {
        names: &["deepseek", "deepseek_v3", "deepseek_v31"],
        open: &["<｜tool▁calls▁begin｜>"],
        close: &["<｜tool▁calls▁end｜>"],
        syntaxes: &[Syntax::Named(DEEPSEEK)],
        ..MARKED
    },
    Format {
        names: &["atem", "muse_spark"],
        open: &["<atem:function_calls>"],
        close: &["</atem:function_calls>"],
        syntaxes: &[Syntax::Tags(ATEM)],
        ..MARKED
    },
    Format {
        names: &["pythonic", "lfm2"],
        open: &["<|tool_call_start|>"],
        close: &["<|tool_call_end|>"],
        syntaxes: &[Syntax::Python, Syntax::Json],
        ..MARKED
    },
    Format {
        names: &["olmo3"],
        open: &["<function_calls>"],
        close: &["</function_calls>"],
        syntaxes: &[Syntax::Tags(INVOKE), Syntax::Python, Syntax::Json],
        ..MARKED
    },
    Format {
        names: &["mistral", "mistralNemo", "mistral_nemo"],
        open: &["[TOOL_CALLS]"],
        close: &[],
        syntaxes: &[Syntax::Json, Syntax::Named(MISTRAL)],
        ..MARKED
    },
    Format {
        names: &["cohere", "cohere2_moe"],
        open: &["<|START_ACTION|>"],
        close: &["<|END_ACTION|>"],
        syntaxes: &[Syntax::Json],
        ..MARKED
    },
    Format {
        names: &["granite", "phi4"],
        open: &["<|tool_call|>"],
        close: &["<|/tool_call|>", "<|end_of_text|>"],
        syntaxes: &[Syntax::Json],
        ..MARKED
    },
    Format {
        names: &["nemotron"],
        open: &["<TOOLCALL>"],
        close: &["</TOOLCALL>"],
        syntaxes: &[Syntax::Json],
        ..MARKED
    },
    Format {
        names: &["apertus"],
        open: &["<|tools_prefix|>"],
        close: &["<|tools_suffix|>"],
        syntaxes: &[Syntax::JsonByName],
        ..MARKED
    },
    Format {
        names: &["solar_open"],
        open: &["<|tool_calls|>"],
        close: &["<|calls|>"],
        syntaxes: &[Syntax::Named(SOLAR)],
        ..MARKED
    },
    Format {
        names: &["internlm2"],
        open: &["<|action_start|><|plugin|>"],
        close: &["<|action_end|>"],
        syntaxes: &[Syntax::Json],
        ..MARKED
    },
    Format {
        names: &["gigachat"],
        open: &["<|function_call|>", "function call<|role_sep|>"],
        close: &[],
        syntaxes: &[Syntax::Json, Syntax::Named(ROLE)],
        ..MARKED
    },
    Format {
        names: &["hunyuan", "apriel"],
        open: &["<tool_calls>"],
        close: &["</tool_calls>"],
        syntaxes: &[
            Syntax::Json,
            Syntax::Tags(FUNCTION_TAGS),
            Syntax::Tags(INVOKE),
            Syntax::Tags(ARGUMENT_KEYS),
        ],
        ..MARKED
    },
    Format {
        names: &[
            "json_tools",
            "json",
            "hermes",
            "qwen",
            "qwen3_coder",
            "xmlFunction",
            "xml_function",
            "qwen35",
            "qwen3_5",
            "glm47",
            "glm4",
            "laguna",
            "step3p5",
        ],
        open: &["<tool_call>"],
        close: &["</tool_call>"],
        syntaxes: &[Syntax::Json, Syntax::Tags(FUNCTION_TAGS), Syntax::Tags(ARGUMENT_KEYS)],
        ..MARKED
    },
    Format {
        names: &["minicpm5"],
        open: &["<function name=\""],
        close: &[],
        syntaxes: &[Syntax::Tags(FUNCTION_NAME)],
        ..MARKED
    },
    Format {
        names: &["functionary31", "functionary_v31"],
        open: &["<function="],
        close: &[],
        syntaxes: &[Syntax::Named(FUNCTION_JSON), Syntax::Tags(FUNCTION_TAGS)],
        kind: Kind::Plain,
    },
    Format {
        names: &["functionary32", "functionary_v32"],
        open: &[">>>"],
        close: &[],
        syntaxes: &[Syntax::Named(HEADING)],
        kind: Kind::Plain,
    },
    Format {
        names: &["commandR", "command_r"],
        open: &["Action: "],
        close: &[],
        syntaxes: &[Syntax::Named(ACTION)],
        kind: Kind::Plain,
    },
    HARMONY,
    Format {
        names: &["llama3", "llama"],
        open: &["<|python_tag|>"],
        close: &[],
        syntaxes: &[Syntax::Json, Syntax::Python],
        kind: Kind::Plain,
    },
    BARE,
];

/// Calls are messages of their own, see [`MESSAGE`].
pub(super) const HARMONY: Format = Format {
    names: &["harmony", "gpt_oss", "gptOSS"],
    syntaxes: &[Syntax::Named(MESSAGE)],
    ..MARKED
};

/// Calls without marks, at the beginning of an answer.
pub(super) const BARE: Format = Format {
    names: &["generic_json", "bare"],
    open: &["{\"name\""],
    syntaxes: &[Syntax::Json, Syntax::Python],
    kind: Kind::Plain,
    ..MARKED
};

/// The format of a name.
pub(super) fn by_name(name: &str) -> Option<&'static Format> {
    FORMATS.iter().find(|format| format.names.contains(&name))
}

/// The format of the first mark that occurs in a text.
pub(super) fn in_text(text: &str) -> Option<&'static Format> {
    FORMATS.iter().find(|format| format.open.iter().any(|open| text.contains(open)))
}
