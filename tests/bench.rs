//! What `scripts/bench` measures inside one process; prints a line of JSON.

use mynah::{
    CachePlan, CacheQuantization, Dry, Event, Files, GenerateOptions, Generation, Model, Prompt,
    Result, SessionOptions, Speculation, Summary, Tokenizer, Xtc,
    internals::{Cache, Scope, families},
};
use mynah_tests::on_engine;
use serde_json::{Value as Json, json};
use std::{env, path::Path, time::Instant};
use tokio::{runtime::Builder, sync::mpsc};

fn main() {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    let number = |word: &str| word.parse().unwrap_or_else(|error| panic!("{word}: {error}"));
    let result = match words[..] {
        ["second-turn", model, history] => block_on(second_turn(model, number(history))),
        ["sampling", model, tokens] => block_on(sampling(model, number(tokens))),
        ["rates", model, prompt, tokens] => block_on(rates(model, number(prompt), number(tokens))),
        ["speculation", model, tokens] => block_on(speculation(model, number(tokens))),
        ["streaming", model] => streaming(model),
        ["cache", model, positions] => cache(model, number(positions)),
        _ => panic!(
            "usage: bench second-turn|sampling|speculation|cache MODEL NUMBER | \
             rates MODEL PROMPT TOKENS | streaming MODEL"
        ),
    };
    match result {
        Ok(result) => println!("{result}"),
        Err(error) => panic!("{error}"),
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    Builder::new_current_thread().build().expect("a runtime without drivers").block_on(future)
}

/// Ids that are no pattern, from 1 to below `below`.
fn ids(count: usize, below: u32) -> impl Iterator<Item = u32> {
    (0..count as u64).map(move |i| {
        let mixed = (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        1 + ((mixed >> 32) % u64::from(below - 1)) as u32
    })
}

/// Seconds to the first token of a second turn: with a session, and computed anew.
async fn second_turn(folder: &str, history: usize) -> Result<Json> {
    const ANSWER: usize = 16;
    const MESSAGE: usize = 16;
    let model = Model::load(Path::new(folder)).await?;
    let ask = |max_tokens| GenerateOptions::default().max_tokens(max_tokens).ignore_end(true);
    let words: Vec<u32> = ids(history + MESSAGE, model.info().vocabulary).collect();
    let session = model.session(SessionOptions::default());
    let mut said = Vec::new();
    let first = Prompt::Tokens(words[..history].to_vec());
    follow(session.generate(first, &ask(ANSWER))?, |id| said.push(id)).await?;
    let turn = Prompt::Tokens([&words[..history], &said, &words[history..]].concat());
    let known = follow(session.generate(turn.clone(), &ask(1))?, drop).await?;
    let anew = follow(model.generate(turn, &ask(1))?, drop).await?;
    Ok(json!({
        "session": known.time_to_first_token.as_secs_f64(),
        "anew": anew.time_to_first_token.as_secs_f64(),
        "computed": known.prompt_tokens - known.cached_tokens,
    }))
}

/// Seconds from the call of load to the first token, and the rates of the same request again, when all
/// kernels and steps are compiled.
async fn rates(folder: &str, prompt: usize, tokens: usize) -> Result<Json> {
    let started = Instant::now();
    let model = Model::load(Path::new(folder)).await?;
    let options = GenerateOptions::default().max_tokens(tokens).temperature(0.0).ignore_end(true);
    let prompt = Prompt::Tokens((1..=prompt as u32).collect());
    let (mut first_token, mut said) = (None, Vec::new());
    follow(model.generate(prompt.clone(), &options)?, |_| {
        first_token.get_or_insert_with(|| started.elapsed().as_secs_f64());
    })
    .await?;
    let summary = follow(model.generate(prompt, &options)?, |id| said.push(id)).await?;
    Ok(json!({
        "first_token": first_token,
        "prefill": summary.prefill_rate,
        "decode": summary.decode_rate,
        "tokens": said,
    }))
}

/// Seconds of a step with every sampling option on, and with none.
async fn sampling(folder: &str, tokens: usize) -> Result<Json> {
    const TURNS: usize = 3;
    let model = Model::load(Path::new(folder)).await?;
    let greedy = GenerateOptions::default().max_tokens(tokens).ignore_end(true);
    let greedy = greedy.speculation(Speculation::Off);
    let all = greedy
        .clone()
        .min_tokens(tokens)
        .temperature(0.8)
        .top_k(1000)
        .top_p(0.95)
        .min_p(0.001)
        .typical_p(0.95)
        .top_n_sigma(3.0)
        .xtc(Xtc { probability: 0.5, threshold: 0.1 })
        .dry(Dry::default())
        .repetition_penalty(1.1)
        .presence_penalty(0.1)
        .frequency_penalty(0.1)
        .logit_bias(vec![(7, 1.0), (8, -1.0)])
        .seed(1)
        .top_logprobs(5);
    let words: Vec<u32> = ids(8, model.info().vocabulary).collect();
    let mut seconds = [Vec::new(), Vec::new()];
    // In turns, so that what else the machine does falls on both.
    for _ in 0..TURNS {
        for (options, seconds) in [&greedy, &all].into_iter().zip(&mut seconds) {
            let summary =
                follow(model.generate(Prompt::Tokens(words.clone()), options)?, drop).await?;
            seconds.push(1.0 / summary.decode_rate);
        }
    }
    let [greedy, all] = seconds.map(|mut seconds| {
        seconds.sort_by(f64::total_cmp);
        seconds[TURNS / 2]
    });
    Ok(json!({ "greedy": greedy, "all": all }))
}

/// Tokens a second with speculation and without, of a text that repeats itself, as greedy decoding of
/// random weights does, and of one that repeats nothing.
async fn speculation(folder: &str, tokens: usize) -> Result<Json> {
    const TURNS: usize = 3;
    let model = Model::load(Path::new(folder)).await?;
    let greedy = GenerateOptions::default().max_tokens(tokens).ignore_end(true);
    let random = greedy.clone().temperature(20.0).seed(1);
    let words: Vec<u32> = ids(200, model.info().vocabulary).collect();
    let mut results = Vec::new();
    for options in [greedy, random] {
        let (mut rates, mut counts) = ([Vec::new(), Vec::new()], (0, 0));
        for turn in 0..=TURNS {
            for (which, speculation) in
                [Speculation::Off, Speculation::Auto].into_iter().enumerate()
            {
                let options = options.clone().speculation(speculation);
                let stream = model.generate(Prompt::Tokens(words.clone()), &options)?;
                let summary = follow(stream, drop).await?;
                // The first turn compiles.
                if turn > 0 {
                    rates[which].push(summary.decode_rate);
                }
                counts = (summary.accepted_tokens, summary.drafted_tokens);
            }
        }
        let [off, auto] = rates.map(|mut rates| {
            rates.sort_by(f64::total_cmp);
            rates[TURNS / 2]
        });
        let (accepted, drafted) = counts;
        results.push(json!({ "off": off, "auto": auto, "accepted": accepted, "drafted": drafted }));
    }
    Ok(json!({ "repeating": results[0], "new": results[1] }))
}

async fn follow(mut stream: Generation, mut see: impl FnMut(u32)) -> Result<Summary> {
    loop {
        match stream.next().await {
            Some(Ok(Event::Token(token))) => see(token.id),
            Some(Ok(Event::Finished(summary))) => return Ok(summary),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error),
            None => unreachable!("a stream ends with a summary or an error"),
        }
    }
}

/// Bytes of a cache of so many positions, as the model computes and in 4 bits.
fn cache(folder: &str, positions: usize) -> Result<Json> {
    let files = Files::from(folder);
    on_engine(move || {
        let config = files.json("config.json")?.expect("the bench writes one");
        let weights = Scope::open(&files, &config)?;
        let model = families::build(&weights)?;
        let mut plan = CachePlan::default();
        let sixteen = Cache::estimate(&*model, &plan, positions)?;
        plan.quantization = Some(CacheQuantization::new(4, 64, 0)?);
        let four = Cache::estimate(&*model, &plan, positions)?;
        Ok(json!({ "sixteen": sixteen, "four": four }))
    })
}

/// Microseconds a token from its id to the reader: the text that it completes, and a bounded
/// channel to another thread, as a [`Generation`] has it.
fn streaming(folder: &str) -> Result<Json> {
    const TOKENS: usize = 200_000;
    const BUFFERED: usize = 32;
    const TEXT: &str =
        concat!(include_str!("../README.md"), "Ĉiuj homoj 人人生而自由 😀 все люди\n");
    let tokenizer = Tokenizer::load(&Path::new(folder).into())?;
    let text = tokenizer.encode(TEXT, false)?;
    let (sender, mut events) = mpsc::channel(BUFFERED);
    let writer = std::thread::spawn(move || -> Result<()> {
        let mut detokenizer = tokenizer.detokenizer(true);
        for &id in text.iter().cycle().take(TOKENS) {
            let text = detokenizer.push(id)?;
            let token = mynah::Token::new(id, 0.0, text);
            sender.blocking_send(Event::Token(token)).ok();
        }
        Ok(())
    });
    let started = Instant::now();
    let runtime = Builder::new_current_thread().build().expect("a runtime without drivers");
    let letters = runtime.block_on(async {
        let mut letters = 0;
        while let Some(event) = events.recv().await {
            if let Event::Token(token) = event {
                letters += token.text.len();
            }
        }
        letters
    });
    let elapsed = started.elapsed().as_secs_f64();
    writer.join().expect("the writer does not panic")?;
    Ok(json!({ "microseconds": elapsed * 1e6 / TOKENS as f64, "letters": letters }))
}
