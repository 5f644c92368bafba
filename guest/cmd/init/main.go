// Command init is the only program of a microVM's initrd: PID 1, and the agent it starts.
package main

import (
	"os"

	"github.com/volant-edge/volant/guest/agent"
)

func main() {
	if os.Getpid() == 1 {
		agent.Init()
	}
	os.Exit(agent.Main())
}
