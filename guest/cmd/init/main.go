// Command init is PID 1 of a microVM.
package main

func main() {}
