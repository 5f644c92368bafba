// Package fake is an engine whose VMMs are goroutines and whose guest is in the same process. It
// serves tests of the rooms above, in testing/synctest bubbles too.
//
//	Engine ─► proc (in World) ─► Guest ◄─ guest.Serve ◄─ net.Pipe ◄─ OpenLink
//	                              └─► App
//
// # Invariants
//
//   - World is what a host keeps when the server dies: an Engine of the same World adopts from it.
//   - A guest that is paused neither reads nor writes its link; its app sees it at Guest.Await.
//   - A restore brings back RAM as the snapshot had it, with a clock that stands still until Thaw,
//     and none of the sessions.
//   - A snapshot is three files, as every engine's, so that tests may damage them.
//
// # Not here
//
// What an engine must do: package microvm. The proof that this one does it: package microvmtest.
package fake
