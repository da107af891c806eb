//! The hub of the tests as a program: `hub <name> <large file>=<bytes> …` serves one repository until
//! its standard input ends; without files it is the demo model. Prints the endpoint.

use mynah_tests::hub::{
    content::{Content, Repository},
    server::Server,
};
use std::{env, error::Error, io};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let name = arguments.next().ok_or("which repository?")?;
    let config = r#"{"model_type": "llama"}"#;
    let mut repository = match arguments.len() {
        0 => Repository::demo(),
        _ => Repository::default().with("config.json", config),
    };
    for (seed, argument) in arguments.enumerate() {
        let (file, size) = argument.split_once('=').ok_or("file=size is expected")?;
        let content = Content::safetensors(&[("tensor", "U8", &[size.parse()?])], seed as u64);
        repository = repository.with_large(file, content);
    }
    let server = Server::start()?;
    server.publish(&name, &repository);
    println!("{}", server.endpoint());
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}
