/** A chat on the command line with the model of the first argument, by default the demo model. */
package example

import dev.mynah.ChatSession
import dev.mynah.LoadEvent
import dev.mynah.Model
import dev.mynah.ModelSource
import dev.mynah.MynahException
import dev.mynah.text
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

private suspend fun chat(session: ChatSession) {
    while (true) {
        print("> ")
        val message = readlnOrNull() ?: return
        session.streamResponse(message).text().collect {
            print(it)
            System.out.flush()
        }
        println()
    }
}
