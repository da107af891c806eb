/** A chat on the command line with the model of the first argument, by default the demo model. */
package example

import dev.mynah.ChatSession
import dev.mynah.FinishReason
import dev.mynah.GenerationEvent
import dev.mynah.GenerationResult
import dev.mynah.LoadEvent
import dev.mynah.Model
import dev.mynah.ModelSource
import dev.mynah.MynahException
import kotlin.system.exitProcess
import kotlinx.coroutines.runBlocking

fun main(arguments: Array<String>): Unit = runBlocking {
    val source = arguments.firstOrNull()?.let(ModelSource::Named) ?: ModelSource.Demo
    try {
        Model.load(source, onProgress = ::report).use { model -> ChatSession(model).use { chat(it) } }
    } catch (error: MynahException) {
        System.err.println(error.message)
        exitProcess(1)
    }
}

private fun report(event: LoadEvent) {
    if (event is LoadEvent.Downloading) {
        System.err.print("\r${event.progress.completed} of ${event.progress.total} bytes")
    }
}

private fun report(result: GenerationResult) {
    println()
    if (result.finishReason == FinishReason.LENGTH) {
        System.err.println("the answer was cut: maxTokens or the context ended it")
    }
}

private suspend fun chat(session: ChatSession) {
    while (true) {
        print("> ")
        val message = readlnOrNull() ?: return
        session.streamResponse(message).collect { event ->
            when (event) {
                is GenerationEvent.Text -> print(event.text)
                is GenerationEvent.Finished -> report(event.result)
                else -> {}
            }
            System.out.flush()
        }
    }
}
