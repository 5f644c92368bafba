package deploy

import (
	"cmp"
	"fmt"

	volant "github.com/volant-edge/volant"
)

// GroupCommand is the process group of machines that run a release's command.
const GroupCommand = "fly_app_release_command"

// command runs the release's command in a machine of its own, before any other changes, and says whether it
// is not done yet.
func (p *planner) command() bool {
	c := p.run.Command
	if c == nil || c.Done {
		return false
	}
	for _, m := range p.commands {
		if m.Release == p.run.Version {
			p.commanded(c, m)
			return true
		}
	}
	if p.o.Full != "" {
		p.noRoom()
		return true
	}
	p.add(Step{
		Kind: Command, Release: p.run.Version, Region: p.o.Primary, Rule: "release_command",
		Text: "its command runs before any machine changes",
	})
	return true
}

// commanded looks at the machine that runs the command.
func (p *planner) commanded(c *ReleaseCommand, m Machine) {
	var why string
	due := m.Created.Add(p.run.WaitTimeout)
	if m.State == volant.StateStarted {
		due = m.Since.Add(c.Timeout)
	}
	switch {
	case m.Ended != "" && m.State == volant.StateStopped && m.EndedWell:
		p.add(Step{
			Kind: Commanded, Release: p.run.Version, Machine: m.ID, Rule: "release_command",
			Text: "the release command ended with exit code 0",
		})
		return
	case m.Ended != "" && m.State == volant.StateStopped:
		why = "failed: " + m.Ended
	case m.State == volant.StateFailed || m.Failures >= mostFailed:
		why = "could not run: " + cmp.Or(m.Reason, "its host gives no reason")
	case due.After(p.o.Now):
		p.wakeAt(due)
		return
	case m.State == volant.StateStarted:
		why = fmt.Sprintf("did not end within %s", c.Timeout)
	default:
		why = fmt.Sprintf("did not start within %s: %s", p.run.WaitTimeout, cmp.Or(m.Reason, "its host gives no reason"))
	}
	p.add(Step{
		Kind: Fail, Release: p.run.Version, Machine: m.ID, Rule: "release_command",
		Text: "the release command " + why + " (machine " + string(m.ID) + ")",
	})
}

// retireCommands destroys machines of commands that are done, or whose release is.
func (p *planner) retireCommands() {
	for _, m := range p.commands {
		r, ok := p.release(m.Release)
		if ok && r.Status == volant.ReleaseRunning && r.Command != nil && !r.Command.Done {
			continue
		}
		p.destroy(m, "command_done", "the command of its release has been run")
	}
}
